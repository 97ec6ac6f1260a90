"""Explain every word that a language model writes, from one forward pass.

Change the small random model to yours, ``AutoModelForCausalLM.from_pretrained(...).eval()`` with its tokenizer, and
PROMPT to ``tokenizer("...", return_tensors="pt")``. ``contrast="runner-up"`` asks why this word and not the next best.
"""

import torch
import transformers

import fxlrp

PROMPT = {"input_ids": torch.tensor([[5, 17, 3, 29]])}

torch.manual_seed(0)
config = transformers.GPT2Config(vocab_size=50, n_positions=32, n_embd=32, n_layer=2, n_head=2, eos_token_id=49)
model = transformers.GPT2LMHeadModel(config).eval()

lrp = fxlrp.convert(model, "attnlrp")
result = lrp.attribute_generation(PROMPT, max_new_tokens=6)
result.to_html("generation.html")

for k in range(len(result)):
    column = result[k]  # the attribution of one generated token, over all that came before it
    strongest = int(column.relevance[0].abs().argmax())
    print(f"{column.label[0]}: logit {float(column.explained[0]):+.2f}, rests most on position {strongest}")
