"""Write a ruleset of your own: another rule somewhere, as a file or in one line of Python.

Change RULESET: ``match`` is a pattern or an operator class as ``print(lrp.plan)`` names it, ``where`` a glob over
module paths, ``rule`` and ``params`` are listed in the manual under Rules. A .yaml file's path can stand in its place.
"""

import fxlrp
from fxlrp.shipped.checkpoints import load_demo

RULESET = {
    "name": "attnlrp-gamma",
    "title": "AttnLRP with the gamma rule in the feed-forward layers",
    "extends": "attnlrp",
    "rules": [
        {"match": "linear", "where": {"module": "*.intermediate.*"}, "rule": "gamma", "params": {"gamma": 0.1}},
    ],
}

model, tokenizer = load_demo()
inputs = tokenizer("A film of unforgettable warmth.", return_tensors="pt")

mine = fxlrp.ruleset(RULESET)
lrp = fxlrp.convert(model, mine, example_inputs=inputs)
print(lrp.plan)  # did it take hold where it should?

in_one_line = fxlrp.ruleset("attnlrp").override(linear={"rule": "gamma", "gamma": 0.1}, where="*.intermediate.*")
tokens = tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
print("\nruleset       gap      " + "".join(f"{token:>14}" for token in tokens))
for rules in (mine, in_one_line, fxlrp.ruleset("attnlrp")):
    result = lrp.with_ruleset(rules).attribute(inputs, ledger=True)
    shares = "".join(f"{float(value):+14.4f}" for value in result.relevance[0])
    print(f"{rules.name:14}{float(result.ledger.gap[0]):+.0e}  {shares}")
