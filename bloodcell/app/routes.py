"""Gradio's page as an ASGI application whose uploads lie apart from one another."""

from __future__ import annotations

import shutil
from typing import Any

from bloodcell.app.uploads import Uploads


def application(gr: Any, page: Any, pages: Any, uploads: Uploads) -> Any:
    """Return the application.

    Gradio keeps uploads under the hash of their content: of two visitors who drop the same image at the same time,
    the first one's answer would remove the second one's file.
    """
    from fastapi import FastAPI, Request
    from gradio.route_utils import upload_fn
    from gradio.routes import file_upload_statuses

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    async def upload(request: Request) -> list[str]:
        """Keep the files of one upload; return their paths."""
        place = uploads.new()
        try:
            known = request.query_params.get("upload_id")
            kept, _, _ = await upload_fn(request, place, float("inf"), known, upload_progress=file_upload_statuses)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        return [str(path) for path in kept]

    upload.__annotations__["request"] = Request
    app.post("/gradio_api/upload")(upload)
    return gr.mount_gradio_app(
        app,
        page,
        path="",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        show_error=True,
        theme=pages.theme(),
        head=pages.style(),
        js=pages.SETTLED,
    )
