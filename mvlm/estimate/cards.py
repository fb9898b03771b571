"""GPUs that runs are planned for, from their makers' data sheets."""

from __future__ import annotations

from dataclasses import dataclass

from mvlm.errors import UserError

TERA, GIGA, GIGABIT = 1e12, 1e9, 1e9 / 8


@dataclass(frozen=True)
class Card:
    """One GPU.

    Attributes:
        bf16, fp16, fp32: peak operations a second of dense matrix products, half of what is advertised "with sparsity";
            0 = it has none. fp32 is without TF32, which torch leaves off.
        memory: bytes.
        bandwidth: of its memory, bytes a second.
        link: to the other GPUs of its node, bytes a second each way: half of the sum that is advertised for NVLink.
        network: to other nodes, bytes a second each way, in the maker's own servers or usual ones.
        nvlink: whether the link is NVLink; otherwise it is PCI Express.
        source: a data sheet, and the server that has that network.
    """

    bf16: float
    fp16: float
    fp32: float
    memory: float
    bandwidth: float
    link: float
    network: float
    nvlink: bool
    source: str

    def peak(self, precision: str) -> float:
        """Operations a second in "bf16", "fp16" or "fp32"."""
        return {"bf16": self.bf16, "fp16": self.fp16, "fp32": self.fp32}[precision]


def _card(
    tensor: tuple[float, float, float],
    memory: float,
    bandwidth: float,
    link: float,
    network: float,
    source: str,
    nvlink: bool = True,
) -> Card:
    """A card by bf16, fp16 and fp32 in 1e12 a second, memory in 1e9 bytes, GB/s, GB/s and Gbit/s."""
    bf16, fp16, fp32 = (TERA * each for each in tensor)
    return Card(bf16, fp16, fp32, memory * GIGA, bandwidth * GIGA, link * GIGA, network * GIGABIT, nvlink, source)


CARDS: dict[str, Card] = {
    "v100": _card((0, 125, 15.7), 32, 900, 150, 50, "NVIDIA V100 data sheet (SXM2 32 GB, January 2020); DGX-1"),
    "v100-16gb": _card((0, 125, 15.7), 16, 900, 150, 50, "NVIDIA V100 data sheet (SXM2 16 GB, January 2020); DGX-1"),
    "t4": _card(
        (0, 65, 8.1), 16, 320, 16, 50, "NVIDIA T4 data sheet (2019); PCIe 3.0 x16, 400 Gb/s for 8", nvlink=False
    ),
    "a10": _card(
        (125, 125, 31.2), 24, 600, 32, 50, "NVIDIA A10 data sheet (2021); PCIe 4.0, 400 Gb/s for 8", nvlink=False
    ),
    "a100": _card((312, 312, 19.5), 80, 2039, 300, 200, "NVIDIA A100 data sheet (SXM 80 GB, June 2021); DGX A100"),
    "a100-40gb": _card((312, 312, 19.5), 40, 1555, 300, 200, "NVIDIA A100 data sheet (SXM 40 GB, 2020); DGX A100"),
    "l40s": _card(
        (362, 362, 91.6), 48, 864, 32, 100, "NVIDIA L40S data sheet (2023); PCIe 4.0, OVX L40S", nvlink=False
    ),
    "h100": _card((989, 989, 67), 80, 3350, 450, 400, "NVIDIA H100 data sheet (SXM5, 2023); DGX H100"),
    "h100-pcie": _card(
        (756, 756, 51), 80, 2000, 64, 200, "NVIDIA H100 PCIe product brief (2022); PCIe 5.0", nvlink=False
    ),
    "h200": _card((989, 989, 67), 141, 4800, 450, 400, "NVIDIA H200 data sheet (SXM, 2024); DGX H200"),
    # For the GeForce series, the rate with fp32 accumulation, as torch multiplies: half of that with fp16's. They are
    # in workstations, without NVLink and peer access, and with 10 Gb/s Ethernet, which is an assumption.
    "rtx-3090": _card((71, 71, 35.6), 24, 936, 32, 10, "NVIDIA Ampere GA102 whitepaper (2021); PCIe 4.0", nvlink=False),
    "rtx-4080": _card(
        (97.5, 97.5, 48.7), 16, 716.8, 32, 10, "NVIDIA Ada GPU architecture whitepaper (2022); PCIe 4.0", nvlink=False
    ),
    "rtx-4090": _card(
        (165.2, 165.2, 82.6), 24, 1008, 32, 10, "NVIDIA Ada GPU architecture whitepaper (2022); PCIe 4.0", nvlink=False
    ),
    "rtx-5080": _card(
        (112.6, 112.6, 56.3), 16, 960, 64, 10, "NVIDIA RTX Blackwell whitepaper (2025); PCIe 5.0", nvlink=False
    ),
    "rtx-5090": _card(
        (209.5, 209.5, 104.8), 32, 1792, 64, 10, "NVIDIA RTX Blackwell whitepaper (2025); PCIe 5.0", nvlink=False
    ),
    "b200": _card((2250, 2250, 75), 180, 8000, 900, 400, "NVIDIA DGX B200 data sheet (2024), an eighth of its totals"),
}

USABLE = 0.92
"""Share of a card's memory for what is planned: the CUDA context, NCCL's buffers and fragments take the rest."""


def find_card(name: str) -> Card:
    """The card of a name, however it is spaced: "RTX 4090" is rtx-4090. Raises `UserError` if there is none."""
    known = {_plain(each): card for each, card in CARDS.items()}
    if _plain(name) not in known:
        raise UserError(f"--gpu {name} is not known: choose one of {', '.join(CARDS)}.")
    return known[_plain(name)]


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name.lower()))
