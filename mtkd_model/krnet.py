"""Knowledge-representation networks: what of a pair of features is compared in MKD."""

import torch
from torch import Tensor, nn

from mtkd_loss.knowledge_representation_loss import knowledge_representation


class KRNet(nn.Module):
    """Makes the kernels for one pair of features and gives their distance through them.

    MKD (Zhu, Liu, Chen 2022, https://arxiv.org/abs/2207.08356): KRNets generate texture-aware dynamic kernels from the
    student's features and the teacher-student correlation. Only the abstract was readable to us, so the form is ours:
    both features are divided by their root mean square per image (networks compute in [0, 1] or in [0, 255]) and
    brought to ``width`` channels by 1 x 1 convolutions; the correlation is C = f([F_T, F_S]), a 3 x 3 convolution with
    ReLU; the N kernels of k x k come from g([F_S, C]), a 3 x 3 convolution with ReLU, the mean over the image and a
    linear layer; softmax over the k * k values of each.

    Args:
        student, teacher: channels of the two features.
        width: channels in which they are compared.
        kernels: N.
        kernel_size: k, odd.
    """

    def __init__(self, student: int, teacher: int, width: int, kernels: int, kernel_size: int) -> None:
        super().__init__()
        self.kernels, self.kernel_size = kernels, kernel_size
        self.adapt_student, self.adapt_teacher = nn.Conv2d(student, width, 1), nn.Conv2d(teacher, width, 1)
        self.correlate = nn.Sequential(nn.Conv2d(2 * width, width, 3, padding=1), nn.ReLU())
        self.describe = nn.Sequential(nn.Conv2d(2 * width, width, 3, padding=1), nn.ReLU())
        self.generate = nn.Linear(width, kernels * kernel_size**2)

    def make_kernels(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Adapted features (B, width, H, W) to kernels (B, N, k, k), each of which sums to 1."""
        correlation = self.correlate(torch.cat([teacher, student], dim=1))
        description = self.describe(torch.cat([student, correlation], dim=1)).mean(dim=(2, 3))
        values = self.generate(description).unflatten(1, (self.kernels, self.kernel_size**2))
        return values.softmax(dim=2).unflatten(2, (self.kernel_size, self.kernel_size))

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Features (B, C_S, H, W) and (B, C_T, H, W) to the scalar ``sum_N mean|K * F_S - K * F_T|``."""
        dtype = self.generate.weight.dtype
        student = self.adapt_student(per_image_scaled(student.to(dtype)))
        teacher = self.adapt_teacher(per_image_scaled(teacher.to(dtype)))
        return knowledge_representation(student, teacher, self.make_kernels(student, teacher))


def per_image_scaled(feature: Tensor, smallest: float = 1e-6) -> Tensor:
    """``feature`` (B, C, H, W) divided by the root mean square of each image; zeros stay zeros."""
    square = feature.square().mean(dim=(1, 2, 3), keepdim=True)
    return feature * (square + smallest**2).rsqrt()
