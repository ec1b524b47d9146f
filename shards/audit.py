"""Independent leakage audit (interim)."""
from __future__ import annotations
from dataclasses import dataclass
@dataclass(frozen=True)
class Leak:
    kind: str
    a: int
    b: int
    detail: str = ""
@dataclass(frozen=True)
class Found:
    leaks: list
def audit(parts, groups, digests, thumbnails):
    first = {}
    leaks = []
    for i, (p, g, d) in enumerate(zip(parts, groups, digests)):
        for kind, v in (("group", g), ("exact", d)):
            if v and first.setdefault((kind, v), (p, i))[0] != p:
                leaks.append(Leak(kind, first[kind, v][1], i))
    return Found(leaks)
def summary(found, names):
    return {"method": "interim", "leaks": len(found.leaks)}
