"""BasicSR's own keys around our sections: the check and docs/options.md share them. Others of its keys are let through.

key: (type, default, meaning)
"""

from mtkd.schema.sections import Table

TOP_LEVEL_KEYS: Table = {
    'name': ('text', 'required', 'of the run: its folder below experiments/ or results/'),
    'model_type': ('text', 'required', 'see below'),
    'scale': ('whole number, 1 to 8', 'required', 'factor of the upsampling'),
    'num_gpu': ('auto or whole number, at least 0', 'required', 'auto takes all, 0 the CPU'),
    'manual_seed': ('whole number, 0 to 4294967295', 'null', 'of all random numbers; null draws one'),
    'dist_params': ('mapping', 'null', 'see below; for several processes'),
    'find_unused_parameters': ('true or false', 'false', "of torch's DistributedDataParallel"),
}
# what BasicSR writes into the options itself
SET_BY_BASICSR = ('dist', 'rank', 'world_size', 'auto_resume', 'is_train', 'root_path')
TRAIN_KEYS: Table = {
    'ema_decay': ('number, at least 0 and below 1', '0', 'of the moving average of the weights; 0 for none'),
    'warmup_iter': ('whole number, at least -1', '-1', 'iterations in which the learning rate grows; -1 for none'),
}
PATH_KEYS: Table = {
    'pretrain_network_g': ('path', 'null', 'weights that network_g starts from'),
    'param_key_g': ('text', 'params', 'state dict in that file'),
    'strict_load_g': ('true or false', 'true', 'every key must fit'),
    'resume_state': ('path', 'null', 'a training state to go on from'),
    'ignore_resume_networks': ('list of networks', 'null', 'not taken from the state'),
}
LOGGER_KEYS: Table = {
    'print_freq': (
        'whole number, at least 1',
        'required in training',
        'iterations from one line of the log to the next',
    ),
    'save_checkpoint_freq': (
        'whole number, at least 1',
        'required in training',
        'iterations from one checkpoint to the next',
    ),
    'keep_last': ('null or whole number, at least 1', 'null', 'checkpoints that stay; null keeps all'),
    'keep_best': ('text', 'null', 'a metric of val.metrics: the best weights are kept as net_g_best.pth'),
    'use_tb_logger': ('true or false', 'false', 'write curves for TensorBoard'),
    'wandb': ('mapping', 'null', '`project` and `resume_id` of Weights & Biases; needs use_tb_logger'),
}
WANDB_KEYS: Table = {
    'project': ('text', 'null', 'null for none'),
    'resume_id': ('text', 'null', 'of a run to go on with'),
}
DIST_KEYS: Table = {
    'backend': ('nccl, gloo or mpi', 'nccl', 'how processes talk; without a GPU always gloo'),
    'port': ('whole number, 1 to 65535', '29500', 'of the first process (SLURM alone)'),
}
IO_KEYS: Table = {
    'type': ('lmdb, disk or memcached', 'required', 'what the data roots are'),
}
# what every data set of BasicSR's trainer has to say; its other keys are its own affair
FOREIGN_DATASET_KEYS = (
    'name', 'type', 'phase', 'scale', 'num_worker_per_gpu', 'batch_size_per_gpu', 'skip_damaged',
)  # fmt: skip
# of BasicSR's option files, and alike enough to ours to be taken for mistyped ones
ELSEWHERE = ('network_d', 'network_r', 'optim_d', 'gan_opt', 'pretrain_network_d', 'param_key_d', 'strict_load_d')
