"""How fast is zmqpp, beside what else there is? One question a file; `python -m zmqpp.bench` lists them."""
