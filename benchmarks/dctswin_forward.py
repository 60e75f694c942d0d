"""How much faster DCTSwin runs than the same network with an FFT-based DCT and attention written out.

Two baselines of the same weights: ``plain`` also runs every convolution of the upsampling on its own, as the released
network does; ``plain_attention`` shares all convolutions with DCTSwin, so it shows the part of the window attention.

    python benchmarks/dctswin_forward.py --runs 10 --json benchmarks/results/dctswin_forward_cpu.json
"""

import argparse
import copy
import datetime
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # so that the script measures the checkout it lies in
from mtkd_arch.dctswin_arch import DCTSwin, DctWindowAttention  # noqa: E402

BATCH = (4, 9, 128, 128)  # crops of 128 pixels of three teachers
TOLERANCE = 1e-5
WARM_UP = 3


def fft_dct(x: Tensor) -> Tensor:
    """Orthonormal DCT-II of the last axis by an FFT of the same length (Makhoul 1980), as torch_dct does it."""
    size = x.shape[-1]
    rows = x.reshape(-1, size)
    reordered = torch.cat([rows[:, ::2], rows[:, 1::2].flip(1)], dim=1)
    spectrum = torch.view_as_real(torch.fft.fft(reordered, dim=1))
    angle = torch.arange(size, dtype=x.dtype, device=x.device) * (math.pi / (2 * size))
    result = spectrum[..., 0] * angle.cos() + spectrum[..., 1] * angle.sin()
    result[:, 0] /= math.sqrt(size)
    result[:, 1:] /= math.sqrt(size / 2)
    return result.view(x.shape)


def fft_idct(x: Tensor) -> Tensor:
    """Inverse of :func:`fft_dct`."""
    size = x.shape[-1]
    rows = x.reshape(-1, size).clone()
    rows[:, 0] *= math.sqrt(size)
    rows[:, 1:] *= math.sqrt(size / 2)
    mirrored = torch.cat([torch.zeros_like(rows[:, :1]), -rows.flip(1)[:, :-1]], dim=1)
    angle = torch.arange(size, dtype=x.dtype, device=x.device) * (math.pi / (2 * size))
    real = rows * angle.cos() - mirrored * angle.sin()
    imaginary = rows * angle.sin() + mirrored * angle.cos()
    spectrum = torch.view_as_complex(torch.stack([real, imaginary], dim=2))
    reordered = torch.fft.irfft(spectrum, n=size, dim=1)
    result = torch.empty_like(rows)
    result[:, ::2] = reordered[:, : (size + 1) // 2]
    result[:, 1::2] = reordered.flip(1)[:, : size // 2]
    return result.view(x.shape)


class PlainWindowAttention(DctWindowAttention):
    """The same attention with separable FFT-based DCTs and softmax(q k^T + bias) v written out."""

    def forward(self, windows: Tensor, mask: Tensor | None = None, kinds: Tensor | None = None) -> Tensor:
        count, tokens, dim = windows.shape
        qkv = self.qkv(_on_windows(fft_dct, windows)).view(count, tokens, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1) + self.position_bias()
        attended = (logits.softmax(-1) @ value).transpose(1, 2).reshape(count, tokens, dim)
        return _on_windows(fft_idct, self.proj(attended))


class PlainDCTSwin(DCTSwin):
    """The same network with the upsampling as its layers stand."""

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.conv_last(self.upsample(self.conv_before_upsample(x)))


def _on_windows(transform: Callable[[Tensor], Tensor], windows: Tensor) -> Tensor:
    """Apply a 1-D transform to both axes of windows of tokens (M, N, C)."""
    side = math.isqrt(windows.shape[1])
    image = windows.view(-1, side, side, windows.shape[-1]).permute(0, 3, 1, 2)  # (M, C, side, side)
    image = transform(transform(image).transpose(-1, -2)).transpose(-1, -2)
    return image.permute(0, 2, 3, 1).reshape(windows.shape)


def build(device: torch.device) -> dict[str, nn.Module]:
    """The network at its published size, and the baselines with the same weights."""
    torch.manual_seed(0)
    network = DCTSwin(upscale=4, in_chans=9).to(device).eval()
    nn.init.normal_(network.conv_last.weight, std=0.02)  # it starts at zero, which would hide any difference
    plain_attention = copy.deepcopy(network)
    for module in plain_attention.modules():
        if type(module) is DctWindowAttention:
            module.__class__ = PlainWindowAttention
    plain = copy.deepcopy(plain_attention)
    plain.__class__ = PlainDCTSwin
    return {'dctswin': network, 'plain': plain, 'plain_attention': plain_attention}


def seconds(network: nn.Module, images: Tensor) -> float:
    start = time.perf_counter()
    network(images)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def summary(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4)
    return {'median': median, 'q1': low, 'q3': high, 'iqr': high - low}


@torch.no_grad()
def measure(runs: int, device: torch.device) -> dict[str, object]:
    networks = build(device)
    images = torch.rand(BATCH, device=device)
    expected = networks['plain'](images)
    difference = max((network(images) - expected).abs().max().item() for network in networks.values())
    if not difference <= TOLERANCE:
        raise SystemExit(f'the networks differ by {difference:.1e}, expected at most {TOLERANCE:.0e}')
    times = {name: [] for name in networks}
    for run in range(-WARM_UP, runs):
        for name, network in networks.items():
            elapsed = seconds(network, images)
            if run >= 0:
                times[name].append(elapsed)
    ours = times['dctswin']
    return {
        'benchmark': 'dctswin_forward',
        'input': list(BATCH),
        'runs': runs,
        'max_difference': difference,
        **{f'{name}_seconds': summary(values) for name, values in times.items()},
        **{
            f'{name}_to_dctswin': summary([theirs / mine for theirs, mine in zip(times[name], ours, strict=True)])
            for name in ('plain', 'plain_attention')
        },
    }


def environment(device: torch.device) -> dict[str, object]:
    git = subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        'date': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
        'commit': git.stdout.strip() if git.returncode == 0 else None,
        'torch': torch.__version__,
        'device': torch.cuda.get_device_name(device) if device.type == 'cuda' else cpu_name(),
        'threads': torch.get_num_threads(),
    }


def cpu_name() -> str:
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(':')[1].strip() for line in lines if line.startswith('model name')), platform.machine())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--runs', type=int, default=10, help='timed runs of each network, interleaved (default 10)')
    parser.add_argument('--device', default='cpu', help='cpu or cuda (default cpu)')
    parser.add_argument('--threads', type=int, help="CPU threads (default: PyTorch's)")
    parser.add_argument('--json', type=Path, help='where to write the result')
    args = parser.parse_args()
    if args.runs < 2:
        parser.error(f'--runs is {args.runs}, expected at least 2')
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    result = {**environment(device), **measure(args.runs, device)}
    for name, value in result.items():
        print(f'{name}:', f'{value["median"]:.4f} (IQR {value["iqr"]:.4f})' if isinstance(value, dict) else value)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + '\n')


if __name__ == '__main__':
    main()
