"""What an option file may say under ``val``. A mistake there would show hours later; the schema finds it at once."""

from mtkd_model.validation import DEVICE_METRICS, KEPT_BYTES, TILE_OVERLAP

# key: (type, default, meaning); the schema and docs/options.md are made from these tables
VAL_KEYS = {
    'val_freq': ('whole number, at least 1', 'required in training', 'iterations from one validation to the next'),
    'save_img': ('true or false', 'required', 'write the images below visualization/'),
    'suffix': ('text', 'the name of the run', 'at the end of the names of saved images, in testing'),
    'metrics': ('mapping', 'null', 'named metrics, see below'),
    'pbar': ('true or false', 'shown in a terminal', 'the progress bar'),
    'tile': ('whole number, at least 0', '0', 'side of the tiles in LR pixels; 0 for whole images'),
    'tile_overlap': ('whole number, at least 0', str(TILE_OVERLAP), 'LR pixels that a tile sees around itself'),
    'keep_images': (
        'true or false',
        'true',
        f'decoded images stay on the device between validations, up to {KEPT_BYTES // 2**30} GiB for each set',
    ),
}
METRIC_KEYS = {
    'type': ('text', 'required', f'{" and ".join(DEVICE_METRICS)} run on the device; any other of BasicSR on the host'),
    'crop_border': ('whole number, at least 0', 'required', 'pixels left out at each side; the scale is usual'),
    'test_y_channel': ('true or false', 'false', 'on Y of YCbCr instead of RGB'),
    'input_order': ('HWC', 'HWC', 'for files of BasicSR that say it'),
    'better': ('higher or lower', 'higher', 'which value is the best so far'),
}


def on_the_device(metric: str) -> str | None:
    """The metric that gives on the device what ``metric`` of BasicSR gives; None where there is none."""
    return metric.removesuffix('_pt') if metric.removesuffix('_pt') in DEVICE_METRICS else None
