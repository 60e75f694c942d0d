"""Packaging. ``basicsr/`` holds launchers only and is never installed: it would hide the real package."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
OPTION_FOLDERS = sorted(
    '.'.join(('mtkd', *folder.relative_to(ROOT).parts))
    for folder in (ROOT / 'options', *(ROOT / 'options').rglob('*'))
    if folder.is_dir()
)
PACKAGES = find_packages(str(ROOT), include=['mtkd', 'mtkd.*', 'mtkd_*'])
VERSION = re.search(r"__version__ = '(.+)'", (ROOT / 'mtkd/__init__.py').read_text(encoding='utf-8')).group(1)
DOCS = ['mkdocs>=1.6,<2', 'mkdocs-material>=9.5,<10']
EXPORT = ['onnx', 'onnxruntime', 'onnxscript']  # the last for graphs of one size

setup(
    name='mtkd-basicsr',
    version=VERSION,
    description='Knowledge distillation of super-resolution networks as a plugin of BasicSR: MTKD and its baselines',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.10,<3.13',
    packages=[*PACKAGES, *OPTION_FOLDERS],
    package_dir={name: name.replace('mtkd.options', 'options').replace('.', '/') for name in OPTION_FOLDERS},
    package_data={'mtkd': ['pretrained/*.safetensors', 'pretrained/*.md', 'pretrained/*.json']}
    | {name: ['*.yml'] for name in OPTION_FOLDERS},
    install_requires=[  # the oldest that are tested, by scripts/test_oldest.sh; why not older: docs/security.md
        'basicsr>=1.4.2',
        'torch>=2.10',
        'torchvision>=0.25',
        'pytorch-wavelets>=1.3',
        'PyWavelets>=1.5',  # pytorch-wavelets needs this and six, and declares neither
        'six>=1.16',
        'opencv-python>=4.8.1.78',
        'numpy>=1.26',
        'lmdb>=1.4',
        'pyyaml>=6.0.1',
        'tqdm>=4.66.3',
        'matplotlib>=3.10.8',
        'spandrel>=0.4.2',
        'safetensors>=0.4.3',
    ],
    extras_require={
        'docs': DOCS,
        'export': EXPORT,
        'test': [
            'pytest',
            'pytest-cov',
            'pytest-xdist',
            'hypothesis',
            'jsonschema',
            'scipy<2',
            'ruff',
            'scikit-image',
            *DOCS,
            *EXPORT,
        ],
    },
    entry_points={
        'console_scripts': [
            'mtkd-prepare-data=mtkd_data.preparation.prepare:main',
            'mtkd-prepare-test-set=mtkd_data.preparation.test_set:main',
            'mtkd-verify-data=mtkd_data.preparation.verify:main',
            'mtkd-cache-teachers=mtkd_data.teacher_cache.command:main',
            'mtkd-evaluate=mtkd_eval.evaluate:main',
            'mtkd-export=mtkd_eval.export:main',
            'mtkd-infer=mtkd_eval.infer:main',
            'mtkd-run-study=mtkd_eval.study.command:main',
            'mtkd-plot=mtkd_eval.plots.command:main',
        ]
    },
)
