"""Explain a recurrent network that reads a sentence word by word, as Arras et al. (2017) do.

Change ``sentiment_bilstm()`` to your module around ``nn.LSTM`` or ``nn.GRU``: it is unrolled over its time steps by
itself. Change TEXT to yours. With "conservative" in the place of "arras2017" the ledger closes on any model.
"""

import fxlrp
from fxlrp.shipped import sentiment_bilstm

TEXT = "never dull , and often very funny"

model, tokenizer = sentiment_bilstm()
inputs = tokenizer([TEXT], return_tensors="pt")

result = fxlrp.attribute(model, inputs, ruleset="arras2017", ledger=True, tokenizer=tokenizer)
result.show()

print(f"{result.label[0]}: score {float(result.explained[0]):+.2f}")
for kind, amount in result.ledger.by_kind().items():
    print(f"{kind:24}{float(amount[0]):+.2f}")
