"""Llama-3-8B-Instruct on GSM8K with one A100 40 GB: adapters on a frozen backbone, in text, curriculum and PPO.

What it is for: latent reasoning with a large model on one GPU. The backbone is frozen and stored in bfloat16; the text and PPO train
adapters of its matrices, the last two phases the navigator. The phases are those of `smollm2_gsm8k.py`, for the reasons given
there; LongShot's published values, PPO alone by `score`, are in `published_single.py`.

What it reaches: not run yet. On the tasks that this project has measured (docs/results.md), PPO without a curriculum teaches a
text model to answer without its thoughts.

Cost: computed, not measured. A plan needs 24 of the 36 GB that one A100 40 GB allows (a tenth stays free). By the roofline an
update of the text takes 3 s, one of the curriculum 3 s, an iteration of PPO 11 s:

    python scripts/plan.py --config configs/single.py --devices 1 --accelerator a100-40g
    python scripts/train.py --config configs/single.py
    python scripts/train.py --config configs/single.py --config.model.source=/models/Llama-3-8B-Instruct \
        --config.data.train=gsm8k_aug/train_no_aug.txt --config.data.test=gsm8k_aug/test.txt
"""

from longshot_jax.config import extend


def get_config():
    config = extend("llama32_1b_gsm8k.py")
    config.model.source = "meta-llama/Meta-Llama-3-8B-Instruct"  # or any local directory
    config.model.weight_dtype = "bfloat16"
    config.data.train = "openai/gsm8k:main:train"  # or any local file; prose steps become equations in gsm8k_aug's
    config.data.validation = ""
    config.data.test = "openai/gsm8k:main:test"
    config.data.answer_length = 384  # written steps in prose, with their <<...>>

    config.text.trainable = config.ppo.trainable = "lora"
    config.text.optimizer.learning_rate = 1e-4  # of adapters, ten times that of all weights
    config.text.batch_size = 32
    config.text.micro_batch_size = 4
    curriculum = config.curriculum
    curriculum.batch_size = 32
    # A few problems in a hundred have more tokens; their last steps stay written, and in PPO are missing.
    curriculum.thought_slots = 192
    config.ppo.max_thoughts = 192
    config.ppo.answer_length = 16
    config.ppo.num_trajectories = 4
    config.ppo.micro_batches = 16
    config.ppo.optimizer.learning_rate = 2e-5
    config.evaluation.questions = 128
    config.evaluation.batch_size = 32
    return config
