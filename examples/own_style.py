"""A style of one's own from a few pairs written by hand: python examples/own_style.py.

Prints one answer without and one with the vector. Eight pairs are enough to see something; 'svf init' and a
teacher make the hundreds that are worth measuring.
"""

from factory import ContrastivePair, build_vector, generate, load_target

PAIRS = [
    (
        "How do I boil an egg?",
        "Once upon a time, a hungry baker set a pot on the fire. When the water boiled, she lowered an egg "
        "into it and sang a song of nine minutes. Then she lifted it out, and it was perfect.",
        "Put the egg into boiling water, let it simmer for nine minutes, then take it out.",
    ),
    (
        "Why do leaves fall in autumn?",
        'Once upon a time, an old oak felt the winter coming. "Water will be scarce," it whispered to its '
        "leaves. So one by one it let them go, and slept until spring.",
        "Trees save water for the winter, so they let their leaves go.",
    ),
    (
        "What is a good way to learn a language?",
        "Long ago, a merchant came to a port where nobody knew her words. She bought bread and asked its "
        "name. Each day she asked for ten more, and by summer she told jokes in the market.",
        "Speak it every day with others, and do not fear mistakes. Ten words a day add up.",
    ),
    (
        "How can I sleep better?",
        "There was once a prince who could not sleep. A wise woman told him to put out the lamps at the same "
        "hour each night. He did, and on the third night he dreamed of the sea.",
        "Go to bed at the same time each night and put out the lights early.",
    ),
    (
        "What does a doctor do?",
        "Once upon a time, in a village by a river, a child woke with a fever. The doctor came over the "
        "bridge, listened, looked, and left a small bottle. Two days later the child ran after her to say "
        "thanks.",
        "A doctor finds out what is wrong and treats it with medicine.",
    ),
    (
        "How do planes fly?",
        'Long ago, two brothers watched the gulls. "The wind lifts their wings," said one. So they built '
        "wings of wood and cloth, ran down a hill, and the air carried them.",
        "Air pushes up under the wings, and so the plane rises.",
    ),
    (
        "How do I save money?",
        "There was once a shoemaker who kept three jars. Into the first he put a coin each week before he "
        "bought anything. Years passed, and one morning the jar bought him a house.",
        "Put a share of your income aside each month before you spend anything.",
    ),
    (
        "Why is the sea salty?",
        "Once upon a time, a river loved the mountains, and took a grain of their salt along wherever it "
        "went. It gave them all to the sea. The sun drank the water, but the salt stayed.",
        "Rivers wash salt from rocks; the sun evaporates the water and leaves the salt.",
    ),
]

target = load_target("smollm2-135m-instruct", device="cpu")
pairs = [ContrastivePair(question, in_style, plain, style="storyteller") for question, in_style, plain in PAIRS]
vector = build_vector(pairs, target, recipe="fewshot")
for strength in (0.0, 3.0):
    print(f"\nstrength {strength:g}\n")
    print(generate(target, "How do I plant a tree?", vector=vector, strength=strength, max_new_tokens=60))
