"""The page itself, in Gradio's words. Import it through serve.py, which first tells Gradio to keep to itself."""

from __future__ import annotations

import html
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import gradio as gr

from bloodcell.app.limits import Limits
from bloodcell.app.uploads import Uploads
from bloodcell.report.card import RESEARCH
from shards.document import plural
from shards.images import IMAGE_SUFFIXES

Answerer = Callable[[Sequence[str], Sequence[Path]], tuple[str, str]]
"""Names and files to a summary and the HTML of the answers."""

SETTLED = """
() => {
  for (const [id, role] of [["status", "status"], ["results", "region"]]) {
    const place = document.getElementById(id);
    place.setAttribute("role", role);
    if (role === "status") { place.setAttribute("aria-live", "polite"); place.setAttribute("aria-atomic", "true"); }
    else place.setAttribute("aria-label", "Answers");
  }
  for (const [id, label] of [["images", "Choose or drop images"], ["folder", "Choose or drop a folder of images"]])
    new MutationObserver((_, watch) => name(id, label)).observe(
      document.getElementById(id), {childList: true, subtree: true}), name(id, label);
  function name(id, label) {
    for (const button of document.querySelectorAll(`#${id} button:has(input[type=file])`))
      if (button.getAttribute("aria-label") !== label) button.setAttribute("aria-label", label);
    for (const input of document.querySelectorAll(`#${id} input[type=file]`))
      if (!input.hasAttribute("aria-label")) { input.setAttribute("aria-label", label); input.tabIndex = -1; }
  }
}
"""
"""Run once in the browser: what changes is announced, and the fields have names of their own."""


def _named(field: gr.File, file: Any) -> tuple[str, Path]:
    """Return (name for people, path) of an uploaded file.

    In place of Gradio's own step, which knows no name and leaves an empty file behind for each upload. Not in a
    subclass, beside whose source Gradio would write a file, nor on an instance, which each visitor gets anew.
    """
    field.temp_files.discard(file.path)
    return file.orig_name or Path(file.path).name, Path(file.path)


gr.File._process_single_file = _named


@dataclass(frozen=True)
class Text:
    """What stands on the page besides its fields: plain text, and name and Markdown of each model card."""

    heading: str
    lead: str
    cards: Sequence[tuple[str, str]]


class Desk:
    """Takes what is dropped and gives what is shown, one request at a time.

    Args:
        answerer: what answers.
        uploads: where files may lie; they are removed when they are answered.
        examples: a folder with images to show.
    """

    def __init__(self, answerer: Answerer, uploads: Uploads, examples: Path) -> None:
        self._answerer, self._uploads, self._examples = answerer, uploads, examples
        self._turn = threading.Lock()

    def images(self, dropped: list[tuple[str, Path]]) -> Iterator[tuple[Any, ...]]:
        """Yield status, answers and the emptied field; first that it is begun."""
        try:
            yield from self._told(dropped, "")
        finally:
            for _, path in dropped:
                self._uploads.remove(path)

    def folder(self, dropped: list[tuple[str, Path]]) -> Iterator[tuple[Any, ...]]:
        """Yield the same of a folder, of which only what is named like an image is looked at."""
        try:
            chosen = [one for one in dropped if one[1].suffix.lower() in IMAGE_SUFFIXES]
            others = len(dropped) - len(chosen)
            yield from self._told(chosen, f" Not named like images, passed over: {others:,}." if others else "")
        finally:
            for _, path in dropped:
                self._uploads.remove(path)

    def examples(self) -> Iterator[tuple[Any, ...]]:
        """Yield status and answers of the examples."""
        for step in self._told([(path.name, path) for path in sorted(self._examples.iterdir())], ""):
            yield step[:2]

    def _told(self, files: Sequence[tuple[str, Path]], more: str) -> Iterator[tuple[Any, ...]]:
        if not files:
            yield f"No images were found there.{html.escape(more)}", "", None
            return
        yield f"Looking at {plural(len(files), 'image')} …", gr.skip(), gr.skip()
        with self._turn:
            summary, answers = self._answerer([name for name, _ in files], [path for _, path in files])
        yield html.escape(summary + more), answers, None


def build(text: Text, desk: Desk, limits: Limits) -> gr.Blocks:
    """Return the page."""
    with gr.Blocks(title=text.heading, analytics_enabled=False, fill_width=True) as page:
        gr.HTML(_top(text), elem_id="top", apply_default_css=False)
        with gr.Row(elem_id="drops"):
            files = gr.File(label="Images", file_count="multiple", height=160, elem_id="images")
            folder = gr.File(label="A folder", file_count="directory", height=160, elem_id="folder")
        gr.HTML(_said(limits), elem_id="limits", apply_default_css=False)
        button = gr.Button("Show drawn examples", elem_id="examples")
        status, results = (gr.HTML("", elem_id=name, apply_default_css=False) for name in ("status", "results"))
        for name, card in text.cards:
            with gr.Accordion(f"Model card: {name}", open=False, elem_classes="card"):
                gr.Markdown(card, sanitize_html=True, latex_delimiters=[])
        turn: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "models", "show_progress": "hidden"}
        files.upload(desk.images, files, [status, results, files], api_name="classify", **turn)
        folder.upload(desk.folder, folder, [status, results, folder], api_name="classify_folder", **turn)
        button.click(desk.examples, None, [status, results], api_name="examples", **turn)
    page.queue(max_size=limits.waiting, default_concurrency_limit=1)
    return page


def theme() -> gr.themes.Base:
    """Return the colours and fonts of the reports; no font is fetched."""
    plain = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    fill, edge, text = "background_fill", "border_color", "text_color"
    colours = {
        "var(--paper)": (f"body_{fill}", f"{fill}_primary", f"block_{fill}", f"button_secondary_{fill}"),
        "var(--wash)": (f"{fill}_secondary", f"code_{fill}", f"panel_{fill}", f"block_label_{fill}"),
        "var(--ink)": (f"body_{text}", f"block_label_{text}", f"block_title_{text}", f"accordion_{text}"),
        "var(--soft)": (f"body_{text}_subdued", f"block_info_{text}"),
        "var(--line)": (f"{edge}_primary", f"block_{edge}", f"block_label_{edge}", f"panel_{edge}"),
        "var(--accent)": ("color_accent", f"{edge}_accent", "loader_color", f"link_{text}", f"button_secondary_{text}"),
    }
    both = {name: colour for colour, names in colours.items() for name in names}
    both |= {f"link_{text}_{when}": "var(--accent)" for when in ("active", "hover", "visited")}
    both |= {f"button_secondary_{fill}_hover": "var(--wash)", f"button_secondary_{edge}": "var(--accent)"}
    known = inspect.signature(plain.set).parameters
    dark = {f"{name}_dark": colour for name, colour in both.items() if f"{name}_dark" in known}
    return plain.set(**both, **dark, block_shadow="none", block_border_width="1px")


def style() -> str:
    """Return a <style>: the colours that the reports have too, and the page's own. Gradio would rewrite its `css`."""
    colours = resources.files("shards").joinpath("templates", "colours.css").read_text(encoding="utf-8")
    own = resources.files("bloodcell.app").joinpath("templates", "app.css").read_text(encoding="utf-8")
    return f"<style>{colours}{own}</style>"


def _top(text: Text) -> str:
    return (
        f'<header><p class="kind">bloodcell</p><h1>{html.escape(text.heading)}</h1>'
        f'<p class="lead">{html.escape(text.lead)}</p><p class="research">{RESEARCH}</p></header>'
    )


def _said(limits: Limits) -> str:
    return (
        f'<p class="soft">Up to {plural(limits.images, "image")} at once, {limits.megabytes:g} MB and '
        f"{limits.megapixels:g} million pixels each. What you drop stays on the machine that runs this page and is "
        "deleted as soon as it is answered.</p>"
    )
