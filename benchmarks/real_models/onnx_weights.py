"""Read an ONNX file: its constants by name, and the graph well enough to tell which layer a nameless weight belongs to."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.real_models.packages import import_onnx

_QUANTIZED = "_quantized"


class OnnxWeights:
    """The constants of an ONNX graph, and the nodes that use them."""

    def __init__(self, path: Path) -> None:
        self.model: Any = import_onnx().load(path)
        to_array = import_onnx("onnx.numpy_helper").to_array
        graph = self.model.graph
        self.constants: dict[str, NDArray[Any]] = {
            item.name: to_array(item) for item in graph.initializer
        }
        self._consumers: dict[str, list[Any]] = defaultdict(list)
        for node in graph.node:
            if node.op_type == "Constant":
                self.constants[node.output[0]] = to_array(node.attribute[0].t)
            for name in node.input:
                self._consumers[name].append(node)

    def dequantized(self, name: str) -> NDArray[np.float32]:
        """Return the weight that lies as integers with a zero point and a scale."""
        integers, zero, scale = (
            self.constants[name + suffix].astype(np.float32)
            for suffix in (_QUANTIZED, "_zero_point", "_scale")
        )
        values: NDArray[np.float32] = (integers - zero) * scale
        return values

    def quantized_matmuls(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Return every integer matrix product with a constant: the node's name (a module's path) and the weight."""
        for node in self.model.graph.node:
            if node.op_type == "MatMulInteger" and node.input[1].endswith(_QUANTIZED):
                yield node.name, self.dequantized(node.input[1].removesuffix(_QUANTIZED))

    def biased_matmuls(self, prefix: str) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Return every matrix product with a constant whose result a bias is added to: the bias's name and the weight."""
        for node in self.model.graph.node:
            if node.op_type != "MatMul" or node.input[1] not in self.constants:
                continue
            added = (name for user in self._consumers[node.output[0]] for name in user.input)
            bias = next((name for name in added if name.startswith(prefix)), None)
            if bias is not None:
                yield bias, self.constants[node.input[1]]

    def output_of_user(self, constant: str) -> str:
        """Return the name of what the one node that uses a constant computes."""
        (node,) = self._consumers[constant]
        return str(node.output[0])

    def run(self, entry: NDArray[np.float32], *, until: str) -> list[NDArray[Any]]:
        """Run the graph up to a named result, in ONNX's own reference implementation; the graph has one input."""
        onnx = import_onnx()
        graph = self.model.graph
        graph.value_info.append(
            onnx.helper.make_tensor_value_info(until, onnx.TensorProto.FLOAT, None)
        )
        first = graph.input[0].name
        part = import_onnx("onnx.utils").Extractor(self.model).extract_model([first], [until])
        evaluator = import_onnx("onnx.reference").ReferenceEvaluator(part)
        found: list[NDArray[Any]] = evaluator.run(None, {first: entry})
        return found
