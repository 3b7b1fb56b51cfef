"""Serve an exported network over HTTP, with JAX and the standard library alone.

    jaxmnist export runs/mnist digits.stablehlo
    python experiments/serve_exported.py digits.stablehlo 8000
    curl --data-binary @images.npy http://127.0.0.1:8000

What is posted is a `.npy` file of images, or their plain bytes; the answer is a list with the
probability of each class, by its name, for each image. It needs jax and flatbuffers.
"""

import io
import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import jax
import jax.export
import numpy as np

path, port = Path(sys.argv[1]), int(sys.argv[2])
model = jax.export.deserialize(bytearray(path.read_bytes()))
names = json.loads(path.with_name(f"{path.name}.json").read_text())["class_names"]
images = model.in_avals[0]  # its shape is (N, H, W, C)
probabilities = jax.jit(model.call)  # compiled once for each number of images


class Handler(BaseHTTPRequestHandler):
    """Answers a POST with probabilities as JSON."""

    def do_POST(self) -> None:
        """Classify the images of the request's body."""
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            if body.startswith(b"\x93NUMPY"):
                array = np.load(io.BytesIO(body), allow_pickle=False)
            else:
                array = np.frombuffer(body, images.dtype)
            rows = np.asarray(probabilities(array.reshape(-1, *images.shape[1:]))).tolist()
            status, answer = 200, [dict(zip(names, row, strict=True)) for row in rows]
        except ValueError as problem:  # another shape or dtype
            status, answer = 400, str(problem)
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())


server = HTTPServer(("127.0.0.1", port), Handler)
print(f"http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
