"""Llama-3.2-1B-Instruct on GSM8K in its equation form, on one GPU: text, soft tokens, then PPO.

What it is for: the size at which results with continuous thoughts are published and hard to repeat: reports of COCONUT on
Llama-3.2-1B differ between 3.3 % and 44.1 % (33.2 % beside 58.4 % with text and 28.8 % without any in SIM-CoT's tables). The
phases are those of `smollm2_gsm8k.py`, for the reasons given there.

What it reaches: not run yet.

Cost: computed, not measured. 1.2 million sequences in the supervised phases. A plan needs 34 of the 72 GB that an H100 80 GB
allows (a tenth stays free), 20 GB of them parameters, gradients and moments in float32. By the roofline an update of the text
takes 0.5 s, one of the curriculum 0.2 s, an iteration of PPO 0.7 s: at least 1.4 hours in all.

    python scripts/plan.py --config configs/llama32_1b_gsm8k.py --accelerator h100-80g
    python scripts/train.py --config configs/llama32_1b_gsm8k.py --config.data.train=gsm8k_aug/train.txt \
        --config.data.validation=gsm8k_aug/valid.txt --config.data.test=gsm8k_aug/test.txt --workdir runs/llama32_1b
"""

from longshot_jax.config import extend


def get_config():
    config = extend("smollm2_gsm8k.py")
    config.model.source = "meta-llama/Llama-3.2-1B-Instruct"  # or any local directory
    config.model.remat = True
    config.data.answer_length = 160  # its tokenizer makes fewer tokens of numbers

    config.text.optimizer.learning_rate = 2e-5
    config.ppo.questions = 32
    config.ppo.optimizer.learning_rate = 2e-6
    config.evaluation.batch_size = 125
    return config
