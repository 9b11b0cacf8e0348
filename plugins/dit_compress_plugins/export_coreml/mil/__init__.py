"""An interpreter of Core ML's MIL programs in torch.

It executes the ``.mlpackage`` as it lies on disk: the graph, the constants and the dtypes of the file.
It proves what the file computes; which kernels a device takes for that is the device's affair.

    program = load_program(Path("dit_step.mlpackage"))
    outputs = program.run({"latent": array, …}, "float16")

``registry.py`` holds the table from operator to function; one module per family registers its own:
``elementwise``, ``activations``, ``compressed``, ``contractions``, ``reductions``, ``shapes``.
"""

from dit_compress_plugins.export_coreml.mil.program import MilProgram, load_functions, load_program
from dit_compress_plugins.export_coreml.mil.registry import OPERATORS, operator

__all__ = ["OPERATORS", "MilProgram", "load_functions", "load_program", "operator"]
