"""Llama-3-8B-Instruct on GSM8K with eight GPUs: all parameters, in text, curriculum and PPO.

What it is for: latent reasoning with a large model at full size: parameters, gradients and moments are sharded over eight devices.
The phases are those of `smollm2_gsm8k.py`, for the reasons given there; LongShot's published values, PPO of five
trajectories by `score`, are in `published_multi.py`.

What it reaches: not run yet.

Cost: computed, not measured. Parameters, gradients and two moments in float32 are 128 GB, 16 GB on each device; with the rest, by XLA's
compiler for GPUs, 38 GB at most. On 8 x H100 an update of the text is estimated at 0.47 s, one of the curriculum at 1.1 s and an
iteration of PPO at 2.9 s (docs/performance.md). Cards of 40 GB do not suffice:

    python scripts/plan.py --config configs/multi.py --devices 8 --accelerator h100-80g
    python scripts/train.py --config configs/multi.py
    python scripts/train.py --config configs/multi.py --config.model.source=/models/Llama-3-8B-Instruct \
        --config.data.train=gsm8k_aug/train_no_aug.txt --config.data.test=gsm8k_aug/test.txt --config.mesh.fsdp=4
"""

from longshot_jax.config import extend


def get_config():
    config = extend("single.py")
    config.mesh.fsdp = 8
    config.mesh.gather = (
        "model"  # a layer at a time, weights would be gathered at every thought and in every micro-batch
    )
    config.model.weight_dtype = "float32"
    for phase, rate in ((config.text, 1e-5), (config.ppo, 1e-6)):
        phase.trainable = "all"
        phase.optimizer.learning_rate = rate
    for phase in (config.text, config.curriculum):
        phase.batch_size = 64
        phase.micro_batch_size = 0  # whole batches: each micro-batch would sum the gradients over devices once more
    config.ppo.questions = 64
    config.ppo.num_trajectories = 8
    config.ppo.micro_batches = 1
    config.evaluation.batch_size = 64
    return config
