"""Convert an artifact to LiteRT (TensorFlow Lite), run the file, and compare it with PyTorch.

LiteRT's converter wants an older torch than the rest, so it gets an environment of its own:

    python3.11 -m venv litert
    litert/bin/pip install 'litert-torch>=0.10,<0.11' optimally-deep
    litert/bin/python examples/to_litert.py RUN/artifact model.tflite photo.png ...

The file takes one uint8 image of shape (1, C, H, W) and gives logits: scaling and normalisation are in the graph.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from odn.artifact import load
from odn.images import decode

ALLOWED_DIFFERENCE = 1e-4


def convert(artifact: Path, target: Path, pictures: list[Path]) -> float:
    """Write the file and return the largest difference of a logit from PyTorch's."""
    import litert_torch
    from ai_edge_litert.interpreter import Interpreter

    loaded = load(artifact)
    shape = loaded.manifest.preprocessing.input_shape
    litert_torch.convert(loaded.deployed, (torch.zeros(1, *shape, dtype=torch.uint8),)).export(str(target))
    interpreter = Interpreter(str(target))
    interpreter.allocate_tensors()
    [image], [logits] = interpreter.get_input_details(), interpreter.get_output_details()
    largest = 0.0
    for path in pictures:
        pixels = decode(path, shape)[None]
        interpreter.set_tensor(image["index"], pixels)
        interpreter.invoke()
        with torch.inference_mode():
            expected = loaded.deployed(torch.from_numpy(pixels)).numpy()
        largest = max(largest, float(np.abs(interpreter.get_tensor(logits["index"]) - expected).max()))
    return largest


def main() -> None:
    artifact, target, *pictures = map(Path, sys.argv[1:])
    if not pictures:
        raise SystemExit("name some images to compare on")
    difference = convert(artifact, target, pictures)
    if difference > ALLOWED_DIFFERENCE:
        target.unlink()
        raise SystemExit(f"not kept: its logits differ from PyTorch's by {difference:.2g}")
    print(f"{target}: {target.stat().st_size:,} bytes, logits within {difference:.2g} on {len(pictures)} images")


if __name__ == "__main__":
    main()
