"""Explain one sentence with the packaged model: heat map and ledger here, a report in explanation.html."""

import fxlrp
from fxlrp.shipped.checkpoints import load_demo

model, tokenizer = load_demo()
inputs = tokenizer("It never once bored me.", return_tensors="pt")

lrp = fxlrp.convert(model, "attnlrp")
result = lrp.attribute(inputs, ledger=True, tokenizer=tokenizer)
result.show()
result.to_html("explanation.html")
