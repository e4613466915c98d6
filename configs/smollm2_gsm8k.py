"""SmolLM2-135M-Instruct on GSM8K in its equation form, on one GPU: COCONUT's schedule after text, then PPO.

What it is for: the recipe of `smollm2_stories.py`, phase by phase, at the published scale of COCONUT (arXiv:2412.06769): 385,620
problems, three steps replaced one by one, then all.

What it reaches: not run yet.

Cost: not measured. 2.7 million sequences of up to 416 positions in the supervised phases; a plan says what fits, and the
roofline's time. The smaller file of 6,973 problems needs more passes:
`--config.data.train=gsm8k_aug/train_no_aug.txt --config.text.epochs=20 --config.curriculum.epochs_per_stage=10`.

    python scripts/plan.py --config configs/smollm2_gsm8k.py --accelerator h100-80g
    python scripts/train.py --config configs/smollm2_gsm8k.py --config.data.train=gsm8k_aug/train.txt \
        --config.data.validation=gsm8k_aug/valid.txt --config.data.test=gsm8k_aug/test.txt --workdir runs/smollm2_gsm8k
"""

from longshot_jax.config import extend


def get_config():
    config = extend("smollm2_stories.py")
    config.model.compute_dtype = "bfloat16"

    config.data.train = "gsm8k_aug/train.txt"
    config.data.validation = "gsm8k_aug/valid.txt"
    config.data.test = "gsm8k_aug/test.txt"
    config.data.prompt_length = 256
    config.data.length_bucket = 64
    config.data.answer_length = 160

    text = config.text
    text.epochs = 3
    text.max_steps = 0
    text.batch_size = 128
    text.micro_batch_size = 32
    text.optimizer.warmup_steps = 100

    curriculum = config.curriculum
    curriculum.stages = (1, 2, 3, 4)  # 4 replaces all steps
    curriculum.epochs_per_stage = 1
    curriculum.max_steps_per_stage = 0
    curriculum.question_hidden_updates = 6000  # two stages
    curriculum.batch_size = 128
    curriculum.micro_batch_size = 16  # 64 would take 149 GB
    curriculum.optimizer.warmup_steps = 100

    ppo = config.ppo
    ppo.iterations = 400
    ppo.questions = 64
    ppo.num_trajectories = 8
    ppo.minibatches = 2
    ppo.micro_batches = 2
    ppo.optimizer.warmup_steps = 20

    config.evaluation.every = 2000
    config.evaluation.questions = 500
    config.evaluation.batch_size = 250
    config.checkpoint.every = 500
    return config
