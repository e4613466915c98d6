"""SmolLM2-135M-Instruct on real word problems: MAWPS and ASDiv-A, tested on SVAMP (arXiv:2103.07191).

What it is for: the recipe of `smollm2_stories.py` on text that people wrote. Most problems have one operation, some two.

What it reaches: this run was not made yet. Text alone, with numbers drawn anew, reached 14.3 % [10.8, 18.8] of 300 of SVAMP after
960 sequences, while it was still improving.

Cost: about 30,000 sequences, some eight hours on two CPU cores, in less than 8 GB. The phases are those of
`smollm2_stories.py`, for the reasons given there.

    python scripts/train.py --config configs/smollm2_svamp.py \
        --config.data.train=svamp/mawps_asdiv_train.csv --config.data.test=svamp/SVAMP.json --workdir runs/svamp
"""

from longshot_jax.config import extend


def get_config():
    config = extend("smollm2_stories.py")
    config.data.train = "svamp/mawps_asdiv_train.csv"
    config.data.test = "svamp/SVAMP.json"
    config.data.redraw = 1.0  # a few thousand templates give unlimited problems
    config.data.prompt_length = 160

    config.text.epochs = 4
    config.text.max_steps = 0

    curriculum = config.curriculum
    curriculum.stages = (1, 2)
    curriculum.max_latent_stage = 2
    curriculum.epochs_per_stage = 4
    curriculum.question_hidden_updates = 150
    config.ppo.max_thoughts = 4
    return config
