"""An emulated processor with AVX-512, and the pytest plugin that runs the kernels on it."""
