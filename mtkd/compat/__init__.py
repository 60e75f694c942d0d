"""Mends for the faults of BasicSR that stop this plugin's users: one function per fault, all run on ``import mtkd``.

Every function may run more than once and does nothing where the fault is gone. "Ends with" names the release that makes
the function needless. BasicSR's release 1.4.2 (PyPI) and its GitHub master are meant unless one is named.
"""

from mtkd.compat.importing import (
    import_wavelets_without_pkg_resources,
    leave_out_the_warning_of_meshgrid,
    restore_functional_tensor,
)
from mtkd.compat.loading import (
    draw_crops_by_their_place,
    name_damaged_images,
    pass_on_errors_of_prefetching,
    seed_workers_anew_each_epoch,
)
from mtkd.compat.processes import distribute_on_cpu, keep_node_lists_from_the_shell
from mtkd.compat.starting import (
    accept_local_rank_with_a_dash,
    check_options_before_writing,
    copy_option_files_whole,
    resume_on_cpu_and_from_the_experiment,
)
from mtkd.compat.weights import read_weights_as_tensors_alone

MENDS = (
    restore_functional_tensor,
    import_wavelets_without_pkg_resources,
    accept_local_rank_with_a_dash,
    resume_on_cpu_and_from_the_experiment,
    check_options_before_writing,
    distribute_on_cpu,
    keep_node_lists_from_the_shell,
    seed_workers_anew_each_epoch,
    draw_crops_by_their_place,
    copy_option_files_whole,
    name_damaged_images,
    pass_on_errors_of_prefetching,
    leave_out_the_warning_of_meshgrid,
    read_weights_as_tensors_alone,
)


def apply() -> None:
    """Apply every mend, in order."""
    for mend in MENDS:
        mend()
