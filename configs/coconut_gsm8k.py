"""COCONUT's curriculum on GSM8K-Aug (Hao et al. 2024, arXiv:2412.06769), with Llama 3.2 1B.

What it is for: the supervised curriculum with its published options: two thoughts per step, three epochs per stage, up
to three steps replaced one by one, then all steps. Stage 4 is repeated four times, for the rest of the published 25
epochs.

What it should reach: not measured yet. Others report for Llama-3.2-1B on GSM8K 33.2 % with COCONUT, 58.4 % with text
chains of thought and 28.8 % without any (tables in SIM-CoT's repository).

Cost: not measured yet. 24 epochs of 385,620 problems; parameters, gradients and moments in float32 take 20 GB, so one
GPU of 40 GB or more.

Departures: the base model (published: GPT-2); stage 0, text steps, is part of the run (published: a model trained
before, for 25 epochs). As published, problems with fewer than three steps get the same number of thoughts.

    python scripts/train.py --config configs/coconut_gsm8k.py \
        --config.data.train=gsm8k_aug/train.txt --config.data.validation=gsm8k_aug/valid.txt
"""

from longshot_jax.config import default_config


def get_config():
    config = default_config()
    config.phases = ("curriculum",)

    config.model.source = "meta-llama/Llama-3.2-1B"  # or any local directory
    config.model.compute_dtype = "bfloat16"
    config.model.remat = True

    config.data.train = "gsm8k_aug/train.txt"
    config.data.validation = "gsm8k_aug/valid.txt"
    config.data.test = "gsm8k_aug/test.txt"
    config.data.tokenizer = "model"
    config.data.prompt_length = 256
    config.data.length_bucket = 64
    config.data.answer_length = 192

    config.thoughts.normalised = False  # as published: raw hidden states are fed back

    curriculum = config.curriculum
    curriculum.mode = "coconut"
    curriculum.stages = (0, 1, 2, 3, 4, 4, 4, 4)  # 8 x 3 epochs
    curriculum.c_thought = 2
    curriculum.epochs_per_stage = 3
    curriculum.max_latent_stage = 3
    curriculum.pad_latent_to_max = True
    curriculum.reset_optimizer = True
    curriculum.batch_size = 128
    curriculum.micro_batch_size = 32
    curriculum.optimizer.learning_rate = 1e-4
    curriculum.optimizer.navigator_learning_rate = 1e-4
    curriculum.optimizer.weight_decay = 0.01

    config.evaluation.every = 1000
    config.evaluation.questions = 512
    config.checkpoint.every = 500
    return config
