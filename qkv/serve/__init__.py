"""The endpoint: one process that answers in the dialects of the clients that people have.

    request ─ guard: who, how large ─ dialect: a wish ─ rooms: a model, a turn ─ events ─ dialect: an answer

`app.py` puts it together, `rooms.py` is where wishes are computed; each dialect is one file that knows a protocol's
shapes and nothing else. FastAPI and uvicorn come with the extra `serve`.
"""
