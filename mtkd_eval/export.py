"""Command line of the export: a network's files, each compared with PyTorch before it is written, and their card."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtkd_data.command_line import exit_code
from mtkd_data.whole_files import check_place, write_atomically
from mtkd_eval.choice import split_label
from mtkd_eval.comparison import as_file_name
from mtkd_eval.exporting import SUFFIXES, Exported, Format, export_network
from mtkd_eval.image_sets import find_sets
from mtkd_eval.load import load_network
from mtkd_eval.model_card import model_card, read_results
from mtkd_eval.stored import describe_stored
from mtkd_eval.training_facts import kept_facts, training_facts


def write_exported(exported: Sequence[Exported], card: str, stem: Path, overwrite: bool = False) -> list[Path]:
    """Write the files ``<stem>.<format>`` and the card ``<stem>.md``, each whole or not at all; their paths."""
    paths = check_free(stem, [one.format for one in exported], overwrite)
    stem.parent.mkdir(parents=True, exist_ok=True)
    for path, content in zip(paths, [*(one.data for one in exported), card.encode()], strict=True):
        write_atomically(path, content)
    return paths


def check_free(stem: Path, formats: Sequence[Format], overwrite: bool) -> list[Path]:
    """The paths that will be written.

    Raises FileExistsError where one is there and may not be overwritten, PermissionError where none can be written.
    """
    paths = [stem.with_name(stem.name + suffix) for suffix in (*(SUFFIXES[name] for name in formats), '.md')]
    there = [path for path in paths if path.exists()]
    if there and not overwrite:
        raise FileExistsError(f'{there[0]} exists: give another --out or --name, or --overwrite')
    check_place(stem)
    return paths


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='export',
        description='Export a trained network as ONNX, TorchScript, torch.export and safetensors files with a model\n'
        'card. Every file is compared with PyTorch at two sizes before it is written.',
        epilog='examples:\n'
        '  python scripts/export.py experiments/MTKD_edsr_x4 --out exported --results results/table.json\n'
        '  python scripts/export.py net_g_latest.pth --network network.yml --out exported --format onnx\n'
        '  python scripts/export.py experiments/KD_mambalite_x4 --out exported --size 180 320\n'
        '  python scripts/export.py experiments/MTKD_edsr_x4 --out o --format safetensors --half --set datasets/Set5\n'
        'writes exported/MTKD_edsr_x4{.onnx,.torchscript,.pt2,.safetensors,.md}\n'
        'exit code: 0 done, 2 refused or failed (then nothing is written), 130 interrupted',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        'network',
        metavar='NETWORK',
        help='option file (FILE:teachers.NAME, FILE:target for the '
        'weights of its aggregator), experiment folder or checkpoint, LABEL=NETWORK to name it',
    )
    add('--out', type=Path, required=True, help='folder to write to')
    add('--format', nargs='+', default=list(SUFFIXES), choices=SUFFIXES, dest='formats', help='default: all four')
    add(
        '--size',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help='LR size of the graphs (default: any; MambaLiteSR needs it)',
    )
    add('--half', action='store_true', help='safetensors: store float16; the largest difference it makes is told')
    add(
        '--set',
        nargs='+',
        default=[],
        dest='sets',
        metavar='SET',
        help='test sets, as scripts/evaluate.py takes them, on which safetensors are measured as stored: a loss '
        'by --half above 0.005 dB is refused, and the file keeps its PSNR',
    )
    add(
        '--plain',
        action='store_true',
        help='ONNX: keep the last two convolutions apart (default: one, which is faster)',
    )
    add('--network', dest='option', metavar='YAML', help='option of the network that a bare checkpoint holds')
    add('--param-key', help='state dict in a checkpoint (default: params_ema before params)')
    add('--results', type=Path, help='JSON of scripts/evaluate.py; its figures for these weights join the card')
    add('--license', help='licence of the weights, for the card (default: that of the file, or unknown)')
    add('--about-data', metavar='TEXT', help='where the training images come from, for the card')
    add('--overwrite', action='store_true', help='replace files that are there')
    return parser.parse_args(argv)


def run(given: Mapping[str, Any]) -> list[str]:
    """What the command line asks for; the lines to tell the user."""
    label, source = split_label(given['network'])
    loaded = load_network(source, given['option'], param_key=given['param_key'], name=label)
    stem, formats = given['out'] / as_file_name(loaded.name), given['formats']
    check_free(stem, formats, given['overwrite'])
    results = read_results(given['results'], loaded) if given['results'] else None
    size = tuple(given['size']) if given['size'] else None
    sets = find_sets(given['sets'], {loaded.scale}) if given['sets'] else []
    kept, training = kept_facts(loaded), training_facts(source, loaded, given['about_data'])
    licence, psnr = given['license'] or kept.get('licence'), kept.get('psnr_y')
    facts = {key: fact for key, fact in (('training', training), ('licence', licence), ('psnr_y', psnr)) if fact}
    exported = export_network(loaded, formats, size, given['half'], not given['plain'], sets, facts)
    named = {stem.name + SUFFIXES[one.format]: one for one in exported}
    card = model_card(loaded, named, training, results, licence, psnr)
    paths = write_exported(exported, card, stem, given['overwrite'])
    lines = [
        f'{path}: {len(one.data) / 2**20:.2f} MiB, differs from PyTorch by {one.difference:.1g}, {one.takes}'
        for path, one in zip(paths, exported, strict=False)
    ]
    lines += [f'as stored: {describe_stored(one.quality)}' for one in exported if one.quality]
    return [*lines, f'{paths[-1]}: model card']


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0 done, 2 refused or failed, 130 interrupted."""
    given = vars(_parse(argv))
    return exit_code(lambda: print('\n'.join(run(given))), 'files that are there are whole')
