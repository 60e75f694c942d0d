"""Similarity between the frequencies of two images: the FSM of HKDSR."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mtkd_loss.wavelet_loss import Decomposition, Details

SMALLEST_NORM = 1e-3  # of a band; below it the direction of a band is noise, and the cosine's gradient would explode


def stacked_bands(low: Tensor, details: Details) -> Tensor:
    """The sub-bands of one level, (B, C, h, w) each, as vectors (B, 4 * C, h * w), colour by colour."""
    return torch.stack([low, *details], dim=2).flatten(3).flatten(1, 2)


def band_similarity(one: Tensor, other: Tensor) -> Tensor:
    """Cosines between all vectors of ``one`` (B, N, L) and all of ``other`` (B, N, L): (B, N, N) in [-1, 1].

    A vector shorter than 0.001 counts as shorter still: its cosines tend to zero.
    """
    one, other = (F.normalize(bands, dim=2, eps=SMALLEST_NORM) for bands in (one, other))
    return one @ other.transpose(1, 2)


def frequency_similarity(student: Tensor, teacher: Tensor, gt: Tensor) -> Tensor:
    """``mean|M(S, G) - M(T, G)|`` of sub-bands (B, N, L); M is :func:`band_similarity`."""
    return (band_similarity(student, gt) - band_similarity(teacher, gt)).abs().mean()


class FrequencySimilarity(nn.Module):
    """:func:`frequency_similarity` of images: the student relates to the ground truth as the teacher does.

    HKDSR (Neurocomputing 554:126592, 2023, https://doi.org/10.1016/j.neucom.2023.126592) matches frequency-similarity
    relations by the discrete wavelet transform; its text was not readable to us and the formula is ours: M is the
    12 x 12 matrix of cosines, per image, between the Haar sub-bands of two images, 3 colours x (LL, LH, HL, HH).
    Computed in float32 also under autocast. Odd sides are extended by their last line.
    """

    def __init__(self) -> None:
        super().__init__()
        self.transform = Decomposition(J=1, wave='haar', mode='symmetric')

    def forward(self, student: Tensor, teacher: Tensor, gt: Tensor) -> Tensor:
        """Images (B, 3, H, W), RGB in [0, 1], of equal shape, to a scalar; raises ValueError for unequal shapes."""
        if not student.shape == teacher.shape == gt.shape:
            shapes = ', '.join(f'{n} {tuple(i.shape)}' for n, i in zip(NAMES, (student, teacher, gt), strict=True))
            raise ValueError(f'FrequencySimilarity: images differ in size: {shapes}')
        with torch.autocast(student.device.type, enabled=False):
            return frequency_similarity(*(self._bands(image) for image in (student, teacher, gt)))

    def _bands(self, image: Tensor) -> Tensor:
        low, (details,) = self.transform(image)
        return stacked_bands(low, details)


NAMES = ('student', 'teacher', 'gt')
