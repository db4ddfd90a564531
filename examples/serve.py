"""A minimal deployment pipeline with nothing but the standard library: images in by HTTP, classes out as JSON.

    castling export castled/digits --preprocess --output digits.onnx
    python examples/serve.py digits.onnx
    curl --data-binary @IMAGE.png http://127.0.0.1:8000/

The artifact takes uint8 pixels (--preprocess); requests are answered in threads, the session takes turns.
"""

import io
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image, UnidentifiedImageError

import castling_convert as cc


def main() -> None:
    artifact, port = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 8000
    session = cc.Session(artifact)  # warmed up: the first request costs no more than the others
    if session.signature.input != "pixels":
        sys.exit(f"{artifact} takes normalised images; export it with --preprocess")
    height, width, channels = session.shape

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                image = Image.open(io.BytesIO(content)).convert("L" if channels == 1 else "RGB")
            except UnidentifiedImageError:
                self.answer(400, {"error": "the body is no image"})
                return
            pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC)).reshape(1, *session.shape)
            probabilities = session(pixels)[0]
            best = int(probabilities.argmax())
            self.answer(200, {"class": best, "probability": float(probabilities[best])})

        def answer(self, status: int, value: dict) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        print(f"{artifact} on {session.running_on}, http://127.0.0.1:{server.server_port}/", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
