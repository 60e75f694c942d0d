"""DCTSwin, the aggregator of MTKD: one image out of the outputs of several teachers."""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from basicsr.archs.swinir_arch import DropPath, Mlp, PatchEmbed, Upsample, UpsampleOneStep
from basicsr.utils.registry import ARCH_REGISTRY
from torch import Tensor, nn

from mtkd_arch.dct import (
    dct_matrix,
    inverse_dct_matrix,
    merge_windows,
    partition_windows,
    relative_position_index,
    released_shift_masks,
    spatial_shift_masks,
    transform_windows,
    window_kinds,
)
from mtkd_arch.merged_upsampling import merged_upsampling
from mtkd_arch.padding import pad_to_multiple

Variant = Literal['default', 'released']
Dct = Literal['orthonormal', 'unnormalised', 'none']
AttnMask = Literal['none', 'spatial', 'released']
ResiConnection = Literal['1conv', '3conv']
Upsampler = Literal['pixelshuffle', 'pixelshuffledirect']

# What each variant stands for; the three switches of the same names override it one by one.
VARIANTS = {
    'default': {'dct': 'orthonormal', 'attn_mask': 'none', 'residual': True},
    'released': {'dct': 'unnormalised', 'attn_mask': 'released', 'residual': False},
}
RELEASED_OUTPUT_RANGE = 255.0
NUM_FEAT = 64  # channels of the reconstruction part, as in SwinIR
DERIVED_BUFFERS = ('.relative_position_index', '.attn_mask')  # in published checkpoints; they follow from the sizes


class DctWindowAttention(nn.Module):
    """Multi-head attention among the DCT coefficients of each window, with a relative position bias.

    The tokens (M, N, C) of M windows are replaced by their 2-D DCT over the window's axes, channel by channel;
    attention runs on the N coefficients, and the inverse DCT brings its result back.
    """

    def __init__(self, dim: int, window_size: int, num_heads: int, qkv_bias: bool, dct: Dct) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        index = relative_position_index(window_size).flatten()
        self.register_buffer('relative_position_index', index, persistent=False)
        for name, matrix in (('dct', dct_matrix), ('inverse_dct', inverse_dct_matrix)):
            values = None if dct == 'none' else matrix(window_size, dct).to(torch.get_default_dtype())
            self.register_buffer(name, values, persistent=False)

    def position_bias(self) -> Tensor:
        """The bias of each head for each pair of tokens, (heads, N, N)."""
        tokens = round(self.relative_position_index.numel() ** 0.5)
        bias = self.relative_position_bias_table[self.relative_position_index]
        return bias.T.reshape(self.num_heads, tokens, tokens)

    def forward(self, windows: Tensor, mask: Tensor | None = None, kinds: Tensor | None = None) -> Tensor:
        """Attend within each window.

        Args:
            windows: (M, N, C).
            mask: added to the attention logits, (K, N, N).
            kinds: which of the K masks each window takes, (M,); left out when K is 1.
        """
        count, tokens, dim = windows.shape
        bias = self.position_bias().unsqueeze(0)  # (1, heads, N, N)
        if mask is not None:
            bias = bias + mask.unsqueeze(1).to(bias.dtype)
        if kinds is not None:
            bias = bias[kinds]  # (M, heads, N, N)
        if self.dct is not None:
            windows = transform_windows(windows, self.dct)
        qkv = self.qkv(windows).view(count, tokens, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (M, heads, N, C / heads) each
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        attended = self.proj(attended.transpose(1, 2).reshape(count, tokens, dim))
        return attended if self.inverse_dct is None else transform_windows(attended, self.inverse_dct)


class DctSwinBlock(nn.Module):
    """A Swin Transformer block on a token grid (B, H, W, C): (shifted) window attention, then an MLP."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int,
        shift: int,
        mlp_ratio: float,
        qkv_bias: bool,
        drop_path: float,
        dct: Dct,
        attn_mask: AttnMask,
        mask_img_size: tuple[int, int],
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.shift = shift
        # the released network leaves an unshifted block alone only when the grid is the one it was built for
        self.unmasked_grid = mask_img_size if attn_mask == 'released' and not shift else None
        self.norm1 = nn.LayerNorm(dim)
        self.attn = DctWindowAttention(dim, window_size, num_heads, qkv_bias, dct)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.register_buffer('shift_masks', _shift_masks(attn_mask, window_size, shift), persistent=False)

    def masks_for(self, batch: int, grid: tuple[int, int]) -> tuple[Tensor | None, Tensor | None]:
        """The masks of this block and which of them each window takes, for a token grid."""
        masks = None if grid == self.unmasked_grid else self.shift_masks
        if masks is None or len(masks) == 1:
            return masks, None
        return masks, window_kinds(*grid, self.window_size, masks.device).repeat(batch)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        shift = self.shift
        features = self.norm1(x)
        if shift:
            features = features.roll((-shift, -shift), dims=(1, 2))
        windows = partition_windows(features, self.window_size)
        windows = self.attn(windows, *self.masks_for(batch, (height, width)))
        features = merge_windows(windows, self.window_size, height, width)
        if shift:
            features = features.roll((shift, shift), dims=(1, 2))
        x = x + self.drop_path(features)
        return x + self.drop_path(self.mlp(self.norm2(x)))


class BlockGroup(nn.Module):
    """Blocks in sequence; a module of its own because published checkpoints name it."""

    def __init__(self, blocks: list[DctSwinBlock]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class ResidualBlockGroup(nn.Module):
    """SwinIR's RSTB: a group of blocks and a convolution around one residual connection, (B, H, W, C)."""

    def __init__(self, blocks: list[DctSwinBlock], dim: int, resi_connection: ResiConnection) -> None:
        super().__init__()
        self.residual_group = BlockGroup(blocks)
        self.conv = _residual_conv(dim, resi_connection)

    def forward(self, x: Tensor) -> Tensor:
        return _to_tokens(self.conv(_to_image(self.residual_group(x)))) + x


@ARCH_REGISTRY.register()
class DCTSwin(nn.Module):
    """Aggregates the outputs of N teachers into one image: a SwinIR whose windows attend in the DCT domain.

    Jiang et al., "MTKD: Multi-Teacher Knowledge Distillation for Image Super-Resolution", ECCV 2024,
    https://arxiv.org/abs/2404.09571; the frame is SwinIR (Liang et al., ICCVW 2021, https://arxiv.org/abs/2108.10257).

    ``forward`` takes the teachers' images joined along the channels, (B, N * num_out_ch, H, W), RGB in [0, 1], any
    H, W >= 1, and returns (B, num_out_ch, H, W) on the same scale, not clamped. Inside, the images are mirrored up to a
    multiple of ``window_size * upscale`` and unshuffled to a token grid of 1 / upscale of their size.

    ``variant='default'`` differs from the authors' code, each difference a switch of its own:

    * ``dct='orthonormal'`` instead of ``'unnormalised'``, whose coefficients are 16 (DC: 32) times larger in a window
      of 8; ``'none'`` is plain window attention;
    * ``attn_mask='none'`` instead of ``'released'``, a spatial mask pushed through the DCT that also reaches unshifted
      blocks; ``'spatial'`` is Swin's own, on shifted blocks. After a DCT tokens are frequencies, so no spatial mask can
      separate what the shift joined;
    * ``residual=True``: the network adds to the mean of its inputs. Its last convolution starts at zero, so the
      untrained aggregator is that mean.

    It also centres every teacher's image by ``rgb_mean``. ``variant='released'`` centres only a single input image, and
    its network gives ``(image - rgb_mean) * 255`` (:meth:`forward_raw`), which ``forward`` turns into RGB. Parameter
    names are the same; checkpoints that hold position indices and masks load with ``strict=True``.

    Args:
        upscale: factor of the unshuffling and of the upsampling, 2, 3, 4 or 8 (the teachers' scale).
        in_chans: channels of all teachers together, N * num_out_ch.
        num_out_ch: channels of one image.
        img_size: the token grid, a number or (height, width), for which ``attn_mask='released'`` leaves unshifted
            blocks unmasked; no block shifts if it is a single window. Nothing else depends on it.
        embed_dim: channels of the tokens, a multiple of every entry of ``num_heads``.
        depths: blocks per group; every other block shifts its windows.
        num_heads: attention heads per group.
        window_size: side of the attention windows in tokens.
        mlp_ratio: width of the MLPs relative to ``embed_dim``.
        qkv_bias: whether the query, key and value projections have a bias.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0.
        resi_connection: one 3 x 3 convolution after each group, or a bottleneck of three.
        upsampler: SwinIR's classical or light-weight upsampling.
        img_range: factor on the centred images inside the network.
        rgb_mean: mean colour, ``num_out_ch`` values in [0, 1].
        variant: which defaults ``dct``, ``attn_mask`` and ``residual`` take.
        dct: transform of the windows, None for the variant's.
        attn_mask: mask of the attention, None for the variant's.
        residual: whether the network adds to the mean of its inputs, None for the variant's.

    Raises:
        ValueError: for arguments that do not fit each other, and for inputs with another number of channels.
    """

    def __init__(
        self,
        upscale: int,
        in_chans: int,
        num_out_ch: int = 3,
        img_size: int | Sequence[int] = 64,
        embed_dim: int = 96,
        depths: Sequence[int] = (4, 4),
        num_heads: Sequence[int] = (6, 6),
        window_size: int = 8,
        mlp_ratio: float = 2.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.1,
        resi_connection: ResiConnection = '1conv',
        upsampler: Upsampler = 'pixelshuffle',
        img_range: float = 1.0,
        rgb_mean: Sequence[float] = (0.4488, 0.4371, 0.4040),
        variant: Variant = 'default',
        dct: Dct | None = None,
        attn_mask: AttnMask | None = None,
        residual: bool | None = None,
    ) -> None:
        super().__init__()
        _check_choice('variant', variant, Variant)
        self.dct = VARIANTS[variant]['dct'] if dct is None else dct
        self.attn_mask = VARIANTS[variant]['attn_mask'] if attn_mask is None else attn_mask
        self.residual = VARIANTS[variant]['residual'] if residual is None else residual
        _check_choice('dct', self.dct, Dct)
        _check_choice('attn_mask', self.attn_mask, AttnMask)
        _check_choice('resi_connection', resi_connection, ResiConnection)
        _check_choice('upsampler', upsampler, Upsampler)
        if upscale not in (2, 3, 4, 8):
            raise ValueError(f'upscale is {upscale}, expected 2, 3, 4 or 8')
        img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
        _check_sizes(embed_dim, depths, num_heads, window_size, img_size if self.attn_mask == 'released' else None)
        _check_channels(in_chans, num_out_ch, rgb_mean, needs_whole_images=self.residual or variant == 'default')

        self.upscale = upscale
        self.in_chans = in_chans
        self.num_out_ch = num_out_ch
        self.window_size = window_size
        self.img_range = img_range
        self.output_range = RELEASED_OUTPUT_RANGE if variant == 'released' else img_range
        output_mean = torch.tensor(rgb_mean).view(1, -1, 1, 1)
        centred = variant == 'default' or in_chans == num_out_ch
        input_mean = output_mean.repeat(1, in_chans // num_out_ch, 1, 1) if centred else torch.zeros(1, 1, 1, 1)
        self.register_buffer('output_mean', output_mean, persistent=False)
        self.register_buffer('input_mean', input_mean, persistent=False)

        self.conv_first = nn.Conv2d(in_chans * upscale**2, embed_dim, 3, 1, 1)
        self.patch_embed = PatchEmbed(patch_size=1, embed_dim=embed_dim, norm_layer=nn.LayerNorm)
        single_window = self.attn_mask == 'released' and min(img_size) <= window_size
        shifts = (0, 0 if single_window else window_size // 2)
        drop_paths = iter(torch.linspace(0, drop_path_rate, sum(depths)).tolist())
        self.layers = nn.ModuleList()
        for depth, heads in zip(depths, num_heads, strict=True):
            blocks = [
                DctSwinBlock(
                    embed_dim,
                    heads,
                    window_size,
                    shifts[i % 2],
                    mlp_ratio,
                    qkv_bias,
                    next(drop_paths),
                    self.dct,
                    self.attn_mask,
                    img_size,
                )
                for i in range(depth)
            ]
            self.layers.append(ResidualBlockGroup(blocks, embed_dim, resi_connection))
        self.norm = nn.LayerNorm(embed_dim)
        self.conv_after_body = _residual_conv(embed_dim, resi_connection)
        if upsampler == 'pixelshuffle':
            self.conv_before_upsample = nn.Sequential(
                nn.Conv2d(embed_dim, NUM_FEAT, 3, 1, 1), nn.LeakyReLU(inplace=True)
            )
            self.upsample = Upsample(upscale, NUM_FEAT)
            self.conv_last = nn.Conv2d(NUM_FEAT, num_out_ch, 3, 1, 1)
        else:
            self.conv_before_upsample = nn.Identity()
            self.upsample = UpsampleOneStep(upscale, embed_dim, num_out_ch)
            self.conv_last = nn.Identity()
        self._init_weights()

    def _init_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if self.residual:
            last = self.conv_last if isinstance(self.conv_last, nn.Conv2d) else self.upsample[0]
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
        for key in [k for k in state_dict if k.startswith(prefix) and k.endswith(DERIVED_BUFFERS)]:
            del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward_features(self, x: Tensor) -> Tensor:
        """The deep features of the shallow ones, (B, embed_dim, h, w) both; h, w multiples of ``window_size``."""
        tokens = self.patch_embed(x).unflatten(1, x.shape[-2:])  # (B, h, w, C)
        for layer in self.layers:
            tokens = layer(tokens)
        return _to_image(self.norm(tokens))

    def forward_raw(self, x: Tensor) -> Tensor:
        """The network's own output, neither scaled nor centred, nor added to the inputs: (B, num_out_ch, H, W)."""
        if x.dim() != 4 or x.shape[1] != self.in_chans:
            raise ValueError(
                f'expected the teachers joined along the channels, (B, {self.in_chans}, H, W), got {tuple(x.shape)}'
            )
        height, width = x.shape[-2:]
        x = pad_to_multiple(x, self.window_size * self.upscale)
        x = F.pixel_unshuffle((x - self.input_mean) * self.img_range, self.upscale)
        # tokens are channels_last images: keeping every convolution in that layout saves all copies between the two
        x = self.conv_first(x.contiguous(memory_format=torch.channels_last))
        x = self.conv_after_body(self.forward_features(x)) + x
        return self.reconstruct(x)[..., :height, :width]

    def reconstruct(self, x: Tensor) -> Tensor:
        """The image at full size from the features, (B, embed_dim, h, w) to (B, num_out_ch, h * upscale, w * upscale).

        With ``upsampler='pixelshuffle'`` the last two convolutions run merged, see :func:`merged_upsampling`.
        """
        x = self.conv_before_upsample(x)
        if isinstance(self.conv_last, nn.Identity):
            return self.upsample(x)
        *stages, conv_up, shuffle = self.upsample
        for stage in stages:
            x = stage(x)
        return merged_upsampling(x, conv_up, self.conv_last, shuffle.upscale_factor)

    def forward(self, x: Tensor) -> Tensor:
        raw = self.forward_raw(x) / self.output_range
        if not self.residual:
            return raw + self.output_mean
        return raw + x.unflatten(1, (-1, self.num_out_ch)).mean(1)


def _to_image(tokens: Tensor) -> Tensor:
    """(B, H, W, C) to (B, C, H, W), a channels_last view."""
    return tokens.permute(0, 3, 1, 2)


def _to_tokens(image: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H, W, C), a view."""
    return image.permute(0, 2, 3, 1)


def _shift_masks(attn_mask: AttnMask, window_size: int, shift: int) -> Tensor | None:
    if attn_mask == 'released':
        return released_shift_masks(window_size, shift)
    return spatial_shift_masks(window_size, shift) if attn_mask == 'spatial' and shift else None


def _residual_conv(dim: int, resi_connection: ResiConnection) -> nn.Module:
    if resi_connection == '1conv':
        return nn.Conv2d(dim, dim, 3, 1, 1)
    return nn.Sequential(
        nn.Conv2d(dim, dim // 4, 3, 1, 1),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(dim // 4, dim // 4, 1, 1, 0),
        nn.LeakyReLU(0.2, inplace=True),
        nn.Conv2d(dim // 4, dim, 3, 1, 1),
    )


def _check_choice(name: str, value: str, choices: object) -> None:
    if value not in get_args(choices):
        raise ValueError(f'{name} is {value!r}, expected one of {", ".join(map(repr, get_args(choices)))}')


def _check_sizes(
    embed_dim: int, depths: Sequence[int], num_heads: Sequence[int], window_size: int, img_size: Sequence[int] | None
) -> None:
    if len(depths) != len(num_heads):
        raise ValueError(f'depths {list(depths)} and num_heads {list(num_heads)} differ in length')
    if any(embed_dim % heads for heads in num_heads):
        raise ValueError(f'embed_dim is {embed_dim}, expected a multiple of every entry of num_heads {list(num_heads)}')
    if window_size < 2:
        raise ValueError(f'window_size is {window_size}, expected at least 2')
    if img_size is not None and (len(img_size) != 2 or min(img_size) < window_size):
        raise ValueError(f'img_size is {img_size}, expected two sides of at least window_size, {window_size}')


def _check_channels(in_chans: int, num_out_ch: int, rgb_mean: Sequence[float], needs_whole_images: bool) -> None:
    if len(rgb_mean) != num_out_ch:
        raise ValueError(f'rgb_mean has {len(rgb_mean)} values, expected num_out_ch of them, {num_out_ch}')
    if in_chans < 1 or (needs_whole_images and in_chans % num_out_ch):
        raise ValueError(
            f'in_chans is {in_chans}, expected one image a teacher: a multiple of num_out_ch, {num_out_ch}'
        )
