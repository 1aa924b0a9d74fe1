"""The HTTP surface. What is computed stands in the modules beside; here are names, limits and errors."""

from __future__ import annotations

from pipelines.service.routes import about, caches, open_inference, rank, segment

ROUTERS = tuple(part.router for part in (about, rank, caches, segment, open_inference))
