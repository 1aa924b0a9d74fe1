"""The HTTP surface. What is computed stands in the modules beside; here are names, limits and errors."""

from __future__ import annotations

from pipelines.service.routes import about, caches, open_inference, rank, segment

#: tried in this order: look-ups, which are cheap, before what is not asked often or costs more anyway
ROUTERS = tuple(part.router for part in (caches, rank, segment, about, open_inference))
