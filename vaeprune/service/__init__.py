"""The service that `vaeprune serve` starts: a pair of ONNX files over HTTP, in onnxruntime and numpy alone.

No module here imports torch, and FastAPI and uvicorn (the extra `serve`) are imported by nothing outside.
"""
