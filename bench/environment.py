"""What this machine is and holds, to put beside its figures: `python -m bench.environment`."""

import importlib.util
import platform
import shutil
import subprocess
import sys

from bench.results import cpu_name, versions
from pgolf.process import commit

NEEDED = ("torch", "triton", "numba", "numpy", "sentencepiece", "zstandard", "constriction", "safetensors", "tyro", "rich",
          "pytest", "pytest_benchmark")  # fmt: skip
TOOLS = ("nvidia-smi", "nvcc", "nsys", "ncu", "compute-sanitizer", "cuobjdump")
PEERS = {"flash_attn": "FlashAttention-2", "flash_attn_interface": "FlashAttention-3",
         "liger_kernel": "Liger-Kernel", "gemlite": "gemlite", "torchao": "torchao"}  # fmt: skip


def said(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]}: {error}"
    return (done.stdout or done.stderr).strip()


def report() -> str:
    import torch

    lines = [
        f"code      {commit() or 'no history'}",
        f"system    {platform.platform()}",
        f"processor {cpu_name()}, torch uses {torch.get_num_threads()} threads",
        "versions  " + ", ".join(f"{name} {number}" for name, number in versions().items()),
        "missing   " + (", ".join(name for name in NEEDED if not importlib.util.find_spec(name)) or "nothing that is needed"),
        "tools     " + (", ".join(tool for tool in TOOLS if shutil.which(tool)) or "none of " + ", ".join(TOOLS)),
        "peers     " + (", ".join(PEERS[module] for module in PEERS if importlib.util.find_spec(module)) or "none installed"),
    ]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            lines.append(
                f"gpu {index}     {gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.multi_processor_count} multiprocessors, "
                f"{gpu.total_memory / 1e9:.1f} GB, L2 {gpu.L2_cache_size / 1e6:.0f} MB, CUDA {torch.version.cuda}"
            )
        query = "--query-gpu=driver_version,clocks.sm,clocks.mem,power.limit,temperature.gpu"
        lines.append("driver, clocks, power, heat: " + said("nvidia-smi", query, "--format=csv,noheader"))
    else:
        lines.append("gpu       none that torch sees")
    return "\n".join(lines)


if __name__ == "__main__":
    print(report())
    sys.exit(0)
