"""Networks of the option files at their published sizes."""

SCALES = (2, 3, 4)
STUDENTS = ('edsr', 'rcan', 'swinir')
TEACHERS = ('edsr', 'rcan', 'swinir')
TITLES = {'edsr': 'EDSR', 'rcan': 'RCAN', 'swinir': 'SwinIR', 'mambalite': 'MambaLiteSR'}

EDSR = 'type: EDSR\nnum_in_ch: 3\nnum_out_ch: 3\nnum_feat: {}\nnum_block: {}\nupscale: {}\nres_scale: {}\n' + (
    'img_range: 255.\nrgb_mean: [0.4488, 0.4371, 0.4040]'
)
RCAN = 'type: RCAN\nnum_in_ch: 3\nnum_out_ch: 3\nnum_feat: {}\nnum_group: {}\nnum_block: {}\nsqueeze_factor: {}\n' + (
    'upscale: {}\nres_scale: 1\nimg_range: 255.\nrgb_mean: [0.4488, 0.4371, 0.4040]'
)
SWINIR = 'type: SwinIR\nupscale: {}\nin_chans: 3\nimg_size: {}\nwindow_size: 8\nimg_range: 1.\ndepths: {}\n' + (
    "embed_dim: {}\nnum_heads: {}\nmlp_ratio: 2\nupsampler: {}\nresi_connection: '1conv'"
)
DCTSWIN = 'type: DCTSwin\nupscale: {}\nin_chans: 9\nembed_dim: {}\ndepths: {}\nnum_heads: {}\nwindow_size: 8\n' + (
    'mlp_ratio: 2\nupsampler: pixelshuffle'
)
MAMBALITE = 'type: MambaLiteSR\nnum_feat: 60\nnum_group: 4\nnum_block: 2\nupscale: {}\nrank: 8\nstate: 8\ndirections: 4'

STUDENT_NETWORKS = {  # the students of the paper: 1.5 M, 5.2 M and 0.9 M parameters
    'edsr': lambda s: EDSR.format(64, 16, s, 1),
    'rcan': lambda s: RCAN.format(64, 10, 6, 16, s),
    'swinir': lambda s: SWINIR.format(s, 64, '[6, 6, 6, 6]', 60, '[6, 6, 6, 6]', 'pixelshuffledirect'),
    'mambalite': MAMBALITE.format,  # 0.37 M
}
TEACHER_NETWORKS = {  # 43.1 M, 15.6 M and 11.9 M
    'edsr': lambda s: EDSR.format(256, 32, s, 0.1),
    'rcan': lambda s: RCAN.format(64, 10, 20, 16, s),
    'swinir': lambda s: SWINIR.format(s, 64, '[6, 6, 6, 6, 6, 6]', 180, '[6, 6, 6, 6, 6, 6]', 'pixelshuffle'),
}
EDSR_FILES = {2: 'be38e77d', 3: '3660f70d', 4: '76ee1c8f'}
TEACHER_FILES = {
    'edsr': lambda s: f'EDSR_Lx{s}_f256b32_DIV2K_official-{EDSR_FILES[s]}.pth',
    'rcan': lambda s: f'RCAN_BIX{s}.pt',
    'swinir': lambda s: f'001_classicalSR_DF2K_s64w8_SwinIR-M_x{s}.pth',
}


def published_aggregator(scale: int) -> str:
    """Aggregator options at published size."""
    return DCTSWIN.format(scale, 96, '[4, 4]', '[6, 6]')
