"""Stage one: a multi-label classifier that ranks the labels of an image (Query2Label), and the caches it writes."""
