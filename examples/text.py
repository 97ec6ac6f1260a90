"""Explain a classifier of texts: which words speak for its answer, and which against it.

Change ``load_demo()`` to your checkpoint, ``AutoModelForSequenceClassification.from_pretrained(...).eval()`` and its
tokenizer, TEXTS to your texts, and "attnlrp" to any name that ``fxlrp rulesets`` lists.
"""

import fxlrp
from fxlrp.shipped.checkpoints import load_demo

TEXTS = ["It never once bored me.", "A film of unforgettable warmth, though the last act drags."]

model, tokenizer = load_demo()
inputs = tokenizer(TEXTS, return_tensors="pt", padding=True)

lrp = fxlrp.convert(model, "attnlrp")
result = lrp.attribute(inputs, target=1, contrast=0, tokenizer=tokenizer)  # why positive rather than negative?
result.show()
result.to_html("text.html")

for text, label, tokens, relevance in zip(TEXTS, result.label, result.tokens, result.relevance, strict=True):
    strongest = relevance.abs().argsort(descending=True)[:3].tolist()
    print(f"{label}: {text}")
    print("   ", ", ".join(f"{tokens[i]} {float(relevance[i]):+.2f}" for i in strongest))
