"""A bundle behind HTTP: Open Inference Protocol v2, plain picture posts, metrics and a page; see docs/serve.md.

Beside the runtime's own libraries it needs uvicorn, httptools and uvloop (the extra `server`).
"""
