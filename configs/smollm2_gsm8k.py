"""SmolLM2-135M-Instruct on GSM8K in its equation form, on one GPU: text, soft tokens, then PPO.

What it is for: the recipe of `smollm2_soft_stories.py`, phase by phase, on 385,620 problems. COCONUT's published schedule, in
hidden states and for GPT-2, is in `coconut_gsm8k.py`.

- `text`: three passes over the problems. Soft tokens repeat what the model would write.
- `curriculum`: every token of the steps becomes a thought, and the stop head learns where they end.
- `ppo`: rewards alone. A sampled thought is a drawn token (`thoughts.noise = "tokens"`), whose log-prob is exact.

What it reaches: not run yet.

Cost: not measured. 1.2 million sequences of up to 448 positions in the supervised phases; a plan says what fits, and the
roofline's time. The smaller file of 6,973 problems needs more passes: `--config.data.train=gsm8k_aug/train_no_aug.txt
--config.text.epochs=20 --config.curriculum.epochs_per_stage=2`.

    python scripts/plan.py --config configs/smollm2_gsm8k.py --accelerator h100-80g
    python scripts/train.py --config configs/smollm2_gsm8k.py --config.data.train=gsm8k_aug/train.txt \
        --config.data.validation=gsm8k_aug/valid.txt --config.data.test=gsm8k_aug/test.txt --workdir runs/smollm2_gsm8k
"""

from longshot_jax.config import extend


def get_config():
    config = extend("smollm2_soft_stories.py")
    config.phases = ("text", "curriculum", "ppo")
    config.model.compute_dtype = "bfloat16"

    config.data.train = "gsm8k_aug/train.txt"
    config.data.validation = "gsm8k_aug/valid.txt"
    config.data.test = "gsm8k_aug/test.txt"
    config.data.prompt_length = 256
    config.data.length_bucket = 64
    config.data.batch_shapes = 4
    config.data.answer_length = 192  # steps keep their << >>

    text = config.text
    text.epochs = 3
    text.max_steps = 0
    text.batch_size = 128
    text.micro_batch_size = 32
    text.optimizer.warmup_steps = 100

    curriculum = config.curriculum
    curriculum.thought_slots = 96  # the tokens of the steps of all but 7 problems in 1,000 (of train_no_aug.txt)
    curriculum.stages = (9,)
    curriculum.max_latent_stage = 9
    curriculum.batch_size = 64
    curriculum.max_steps_per_stage = 200

    config.thoughts.noise = "tokens"
    ppo = config.ppo
    ppo.iterations = 400
    ppo.questions = 64
    ppo.num_trajectories = 8
    ppo.minibatches = 2
    ppo.micro_batches = 4
    ppo.gradient = "score"
    ppo.max_thoughts = 96
    ppo.min_thoughts = 1
    ppo.optimizer.learning_rate = 1e-5
    ppo.optimizer.warmup_steps = 20

    config.evaluation.every = 2000
    config.evaluation.questions = 500
    config.evaluation.batch_size = 250
    config.checkpoint.every = 500
    return config
