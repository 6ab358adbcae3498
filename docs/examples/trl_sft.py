"""Fine-tune in TRL's SFTTrainer with SPF and EMA: python trl_sft.py MODEL DATA ANCHOR OUT.

MODEL is a chat model, DATA a .jsonl file with `messages`, ANCHOR one with a single row: a harmful prompt and a refusal.
"""

import sys

import torch
from datasets import load_dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from geomsafe.methods import MethodsCallback, Spf, SpfOptions, make_method

model, data, anchor, out = sys.argv[1:]
chat = AutoTokenizer.from_pretrained(model).apply_chat_template
turns = load_dataset("json", data_files=anchor, split="train")[0]["messages"]
batch = chat(turns, return_tensors="pt", return_dict=True)
batch["labels"] = batch["input_ids"].clone()
batch["labels"][:, : len(chat(turns[:-1], add_generation_prompt=True)["input_ids"])] = -100  # the refusal alone

methods = [Spf(SpfOptions(), anchor=batch), make_method("ema:eta=0.25")]
rows = load_dataset("json", data_files=data, split="train")
args = SFTConfig(out, use_cpu=not torch.cuda.is_available())
trainer = SFTTrainer(model, args, train_dataset=rows, callbacks=[MethodsCallback(methods, log=print)])
trainer.train()
with methods[1].weight_sets()["ema"](trainer.model) as averaged:
    averaged.save_pretrained(f"{out}/ema")
