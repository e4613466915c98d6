"""SmolLM2-135M-Instruct that reasons in soft tokens on real word problems: MAWPS and ASDiv-A, tested on SVAMP (arXiv:2103.07191).

What it is for: the recipe of `smollm2_soft_stories.py` on text that people wrote. Most problems have one operation, some two. Their
numbers are drawn anew, so that three thousand problems do not repeat.

What it reaches (docs/results/pretrained.md, 1,000 problems of SVAMP, seed 0): 17.2 % with thoughts that stop by themselves, at most 3.3 % with
replaced ones, 18.3 % in text: the text is what limits it, after 4,800 sequences, and two thirds of its equations are not those of the problem.
On held-out training problems the text reaches 59.9 %. A longer text phase needs a GPU.

Cost: 9 GB and 50 minutes of one CPU core.

    python scripts/train.py --config configs/smollm2_svamp.py \
        --config.data.train=svamp/mawps_asdiv_train.csv --config.data.test=svamp/SVAMP.json --workdir runs/svamp
    python scripts/eval.py --checkpoint runs/svamp --thoughts own --num_trajectories 0 --output svamp.json
"""

from longshot_jax.config import extend


def get_config():
    config = extend("smollm2_soft_stories.py")
    config.data.train = "svamp/mawps_asdiv_train.csv"
    config.data.test = "svamp/SVAMP.json"
    config.data.redraw = 1.0
    config.data.prompt_length = 160
    config.data.answer_length = 96
    config.data.batch_shapes = 4

    config.text.epochs = 4
    config.ppo.max_thoughts = 36

    curriculum = config.curriculum
    curriculum.thought_slots = 36  # all of SVAMP, and all but 21 of the 3,071 other problems with their own numbers
    curriculum.stages = (7,)
    curriculum.max_latent_stage = 7
    return config
