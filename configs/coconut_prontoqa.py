"""COCONUT's curriculum on ProntoQA (Hao et al. 2024, arXiv:2412.06769; Saparov & He 2023), with Llama 3.2 1B.

What it is for: the supervised curriculum with its published options on five-hop deductions over a fictional ontology:
one thought per step, five epochs per stage, up to six steps, then all steps for the rest of 50 epochs. Problems come
from a file in COCONUT's JSON form, written by ProntoQA's own generator.

What it should reach: not measured yet.

Cost: not measured yet. Parameters, gradients and moments in float32 take 20 GB, so one GPU of 40 GB or more.

Departures: the base model (published: GPT-2); stage 0 is part of the run.

    python scripts/train.py --config configs/coconut_prontoqa.py \
        --config.data.train=prontoqa/train.json --config.data.test=prontoqa/test.json
"""

from longshot_jax.config import default_config


def get_config():
    config = default_config()
    config.phases = ("curriculum",)

    config.model.source = "meta-llama/Llama-3.2-1B"  # or any local directory
    config.model.compute_dtype = "bfloat16"
    config.model.remat = True

    config.data.train = "prontoqa/train.json"
    config.data.test = "prontoqa/test.json"
    config.data.tokenizer = "model"
    config.data.prompt_length = 640
    config.data.length_bucket = 128
    config.data.answer_length = 160

    config.thoughts.normalised = False  # as published: raw hidden states are fed back

    curriculum = config.curriculum
    curriculum.mode = "coconut"
    curriculum.stages = (0, 1, 2, 3, 4, 5, 6, 7, 7, 7)  # 10 x 5 epochs
    curriculum.c_thought = 1
    curriculum.epochs_per_stage = 5
    curriculum.max_latent_stage = 6
    curriculum.pad_latent_to_max = True
    curriculum.reset_optimizer = True
    curriculum.batch_size = 128
    curriculum.micro_batch_size = 32
    curriculum.optimizer.learning_rate = 1e-4
    curriculum.optimizer.navigator_learning_rate = 1e-4
    curriculum.optimizer.weight_decay = 0.01

    config.evaluation.every = 200
    config.evaluation.questions = 200
    config.checkpoint.every = 200
    return config
