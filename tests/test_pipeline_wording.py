"""Who a prompt is about, and the prompts that follow."""

import pytest
from animate124.pipeline.wording import (
    Subject,
    refined,
    subject_of,
    subject_of_caption,
    unknown_words,
)

CAPTIONS = {  # the public benchmark's, and a few harder ones
    "a panda is dancing": "panda",
    "a full-bodied cat is waving its paw": "full-bodied cat",
    "an eagle is flying": "eagle",
    "a flag attached to a flagpole, waving": "flag attached to a flagpole",
    "a lighting candle": "lighting candle",
    "a monkey riding a bike": "monkey",
    "a humanoid robot with a shiny silver finish, using a laptop": "humanoid robot",
    "a rose in a flowerpot sways in the wind": "rose",
    "a squirrel eating nut": "squirrel",
    "a tiger elegantly playing a violin": "tiger",
    "a fox maneuvering a game controller": "fox",
    "two pandas are dancing": "two pandas",
    "A yellow duckling walking home": "yellow duckling",
    "a flying eagle is gliding": "flying eagle",
    "the king is laughing.": "king",
    "a crab raises its big claws": "crab",
}
NOBODY = [
    "dancing wildly",
    "is dancing",
    "a",
    "it rains and pours",
]


# prompt -> subject; ?: a person is asked. HELD_OUT was written before the grammar was and counted
# once, when that was done: of 85 sentences 81 were right, 3 asked for no need, and 1 was wrong.
TUNED_ON = """
a frog happily jumping over a stone -> frog
a small, fluffy dog is barking -> small, fluffy dog
a bird flies -> bird
a panda dances -> panda
best quality, masterpiece, a panda is dancing -> panda
it is dancing -> ?
a red fox (cartoon) is running -> red fox
(a panda:1.2) is dancing -> panda
there is a panda dancing -> panda
there are two cats playing -> two cats
a tiger that is roaring loudly -> tiger
a cat and a dog are playing -> ?
two pandas are dancing -> two pandas
my dog is wagging its tail -> dog
a teddy bear is waving -> teddy bear
a polar bear walks on ice -> polar bear
a statue of a horse is galloping -> statue of a horse
a picture of a cat jumping over a fence -> cat
a cup of coffee is steaming -> cup of coffee
a duckling is quacking -> duckling
Pikachu is running -> Pikachu
Spider-Man is swinging between buildings -> Spider-Man
jump over the fence -> ?
ein Panda tanzt -> ?
un chat qui danse -> ?
一只熊猫在跳舞 -> ?
that old man is laughing -> old man
an owl blinks -> owl
a happy dog wags its tail -> happy dog
a fly is buzzing -> fly
an elderly woman is knitting -> elderly woman
a dog wearing sunglasses is skateboarding -> dog
a burning candle -> burning candle
a running horse is jumping -> running horse
a horse runs fast -> horse
a tree sways in the wind -> tree
a ship sails on the sea -> ship
a cactus dances -> cactus
an astronaut rides a horse -> astronaut
cute panda dancing, 4k, trending on artstation -> cute panda
panda dances -> panda
dog -> ?
a panda -> panda
a girl in a red dress is spinning -> girl
a squirrel eats a nut -> squirrel
a monkey was climbing a tree -> monkey
the wolf will howl at the moon -> wolf
a sleeping cat wakes up -> sleeping cat
a well-dressed gentleman bows -> well-dressed gentleman
the robot's arm is moving -> robot's arm
John's dog is running -> John's dog
something moves -> ?
they are fighting -> ?
in a forest, a deer is running -> deer
under the sea a fish swims -> ?
a video of two dogs fighting -> two dogs
a watercolor painting of a swan swimming -> swan
is a panda dancing? -> ?
a panda, wearing a hat, is dancing -> panda
a string is vibrating -> string
a spring bounces -> spring
a building is shaking -> building
a crab raises its big claws -> crab
a bus stops -> bus
the sheep jump over the fence -> sheep
several fish swim in circles -> several fish
a group of children dance -> group of children
a dog chasing a cat -> dog
the old clock's hands turn slowly -> old clock's hands
water flows down the rocks -> water
a rocket launches into space -> rocket
a <token> is dancing -> ?
dancing wildly -> ?
slowly dancing, a panda -> panda
A Panda Is Dancing. -> Panda
"a panda is dancing" -> panda
an R2D2 robot beeps -> R2D2 robot
a panda isn't moving -> panda
a brown bear cub plays -> brown bear cub
a hot air balloon floats -> hot air balloon
a wind-up toy marches -> wind-up toy
a guitar-playing tiger is singing -> guitar-playing tiger
a house on fire collapses -> house
a robot slowly raises its arm -> robot
a very happy panda is dancing -> very happy panda
a young woman, smiling, waves at the camera -> young woman
a black and white cat is sleeping -> black and white cat
an old, rusty robot walks -> old, rusty robot
a sports car drives fast -> sports car
a sports car is driving -> sports car
a toy racing car is driving -> ?
a washing machine is shaking -> washing machine
an old washing machine is shaking -> old washing machine
a fire breathing dragon flies -> ?
a crystal lens glows -> crystal lens
a princess dances -> princess
a christmas tree glows -> christmas tree
Santa Claus is laughing -> Santa Claus
a walrus claps -> walrus
the panda dances -> panda
the polar bears dance -> polar bears
the teddy bears -> ?
studio lights, a panda is dancing -> panda
studio lighting, a panda is dancing -> panda
a panda, the background is blurred -> ?
a panda is dancing, the camera is still -> panda
a panda and its cub are playing -> ?
pandas dance -> pandas
horses gallop -> horses
an icon of a saint is glowing -> icon of a saint
a bottle of wine falls -> bottle of wine
a bowl of soup is steaming -> bowl of soup
a tin can is rolling -> tin can
a fish tank is leaking -> fish tank
a human is walking -> human
a dachshund waddles -> dachshund
a capybara is bathing -> capybara
a capybara swims -> capybara
an anime girl, long hair, is dancing -> anime girl
1girl, dancing, masterpiece -> ?
a man in a suit dancing -> man
the little mermaid sings -> little mermaid
a zombie shambles forward -> ?
a golden retriever wags its tail -> golden retriever
a woman's hair blows in the wind -> woman's hair
a lit candle -> lit candle
a lit candle flickers -> lit candle
a cake with candles is burning -> cake
a cherry blossom tree is swaying -> cherry blossom tree
a leaf falls -> leaf
leaves are falling -> leaves
the leaves fall -> leaves
a flag waves -> flag
a flag waves in the wind -> flag
a puppet master pulls the strings -> puppet master
a drummer drums -> drummer
a bird sings, spreading its wings -> bird
a lion (king of the jungle) roars -> lion
a ninja, a samurai and a monk are fighting -> ?
a dog or a cat is running -> ?
a dog is running and a cat is sleeping -> ?
show me a dancing panda -> ?
please make the panda dance -> ?
let the dog run -> ?
the dog runs -> dog
a snowman melts -> snowman
a snowman melting -> snowman
a scarecrow waving its arms -> scarecrow
an orange cat is licking -> orange cat
a cat (orange:1.3) is licking -> cat
a (cute:1.2) cat is licking -> cat
(cute cat:1.4), running, (best quality) -> ?
<lora:foo:0.8> a panda is dancing -> panda
a sunflower turning towards the sun -> sunflower
an elephant raising its trunk -> elephant
a wizard casts a spell -> wizard
a boxer punches a bag -> boxer
a samurai draws his sword -> samurai
a mother holding her baby is smiling -> mother
a butterfly, flying -> butterfly
a glass of water spills -> glass of water
a clownfish swimming -> clownfish
a jellyfish pulses -> jellyfish
a penguin slides on its belly -> penguin
a bee flies from flower to flower -> bee
a plant grows -> plant
a windmill turns -> windmill
a clock ticks -> clock
a kite flies high -> kite
a dog plays fetch -> dog
a girl plays piano -> girl
a bear rides a unicycle -> bear
a fox leaps -> fox
a rabbit eats a carrot -> rabbit
"""
HELD_OUT = """
a rabbit quickly hopping through tall grass -> rabbit
a big, old, grumpy bear is growling -> big, old, grumpy bear
a duck swims -> duck
the horse gallops across a field -> horse
masterpiece, 8k, highly detailed, a robot is walking -> robot
she walks slowly -> ?
a penguin [plush toy] is sliding -> penguin
a ((fluffy cat)) is jumping -> fluffy cat
there's a dog running on the beach -> dog
a panda which is dancing -> panda
a man who is juggling -> man
a knight and his horse are riding -> ?
three little ducks are swimming in a pond -> three little ducks
her cat stretches -> ?
an ice cream truck is driving -> ice cream truck
a toy train moves along the track -> toy train
a photo of a panda dancing -> panda
a 3D render of a robot dancing -> robot
a flock of birds is flying -> flock of birds
a viking swings his axe -> viking
Mario jumps -> Mario
dance -> ?
make the panda dance -> ?
un panda está bailando -> ?
パンダが踊っている -> ?
this robot is waving -> robot
those birds are singing -> birds
the dragon breathes fire -> dragon
a blue butterfly flaps its wings -> blue butterfly
a friendly monster waves -> friendly monster
a cat sitting on a chair is licking its paw -> cat
a singing bird -> singing bird
a dancing panda -> dancing panda
a boy runs and jumps -> boy
the flower blooms in spring -> ?
a car drives down the road -> car
a glass falls off the table -> glass
a lion opens its mouth and roars -> lion
an astronaut riding a horse on mars, cinematic lighting -> astronaut
panda dancing -> panda
cats playing -> cats
a dog -> dog
a beautiful girl with long hair is dancing in the rain -> beautiful girl
a squirrel eating a nut -> squirrel
a squirrel ate a nut -> squirrel
a cat has been sleeping -> cat
a baby can crawl -> baby
a full-bodied cat is waving its paw -> full-bodied cat
a chicken pecks at the ground -> chicken
a child's toy car is rolling -> child's toy car
nobody is dancing -> ?
everyone is dancing -> ?
we dance -> ?
on the moon, an astronaut is jumping -> astronaut
a close-up of a bee flying -> bee
a cartoon of a mouse eating cheese -> mouse
watch a panda dance -> ?
a panda, dancing -> panda
the king is laughing -> king
an earring is swinging -> earring
a human being is dancing -> human being
a clothing rack is falling -> clothing rack
a goose waddles -> goose
an octopus waves its arms -> octopus
two horses gallop -> two horses
five dolphins leap out of the water -> five dolphins
a woman dancing with a man -> woman
a dog chases a cat -> dog
a fire burns -> fire
smoke rises -> smoke
a kangaroo is boxing, front view -> kangaroo
dancing -> ?
beautiful, high quality -> ?
A PANDA IS DANCING -> PANDA
  a  panda   is dancing   -> panda
a T-Rex is roaring -> T-Rex
a 3d panda is dancing -> 3d panda
a panda's dancing -> panda
a goldfish swims in a bowl -> goldfish
the hot air balloon rises over the hills -> hot air balloon
a skeleton plays drums -> skeleton
a man made of stone walks -> man made of stone
a cat with a hat sits and purrs -> cat
a bear suddenly stands up -> bear
a bird is flying and a cat is sleeping -> ?
"""


def rows(table):
    return [tuple(line.split(" -> ")) for line in table.strip().splitlines()]


@pytest.mark.parametrize("table", [TUNED_ON, HELD_OUT])
def test_who_moves_in_many_sentences(table):
    found = {prompt: subject_of(prompt) for prompt, _ in rows(table)}
    told = [(prompt, "?" if who is None else who.noun) for prompt, who in found.items()]
    assert told == rows(table)
    for prompt, who in found.items():
        if who is not None:
            assert refined(prompt, who).replace("<token>", who.noun) == prompt


@pytest.mark.parametrize("prompt", CAPTIONS)
def test_the_subject_of_a_prompt(prompt):
    subject = subject_of(prompt)
    assert subject.noun == CAPTIONS[prompt]
    assert refined(prompt, subject).replace("<token>", subject.noun) == prompt


@pytest.mark.parametrize("prompt", NOBODY)
def test_no_subject_is_made_up(prompt):
    assert subject_of(prompt) is None


def test_a_named_subject_gets_its_article():
    assert Subject.named("owl") == ("owl", "an owl")
    assert Subject.named("the old bear") == ("old bear", "the old bear")
    assert Subject.named("my cat") == ("cat", "my cat")
    assert Subject.named("two pandas") == ("two pandas", "two pandas")
    assert Subject.named("Pikachu") == ("Pikachu", "Pikachu")
    with pytest.raises(ValueError, match="--subject is empty"):
        Subject.named(" ")
    assert refined("a panda is dancing", Subject.named("bear")) is None
    assert refined("a pandab is dancing", Subject.named("panda")) is None


def test_the_article_goes_with_the_subject():
    assert subject_of("my dog is wagging its tail").phrase == "my dog"
    assert subject_of("the two old pandas dance") == ("two old pandas", "the two old pandas")
    assert subject_of("a (fluffy:1.3) cat is jumping") == ("cat", "a cat")
    assert subject_of("Pikachu is running").phrase == "Pikachu"


@pytest.mark.parametrize(
    ("prompt", "becomes"),
    [
        ("it is dancing", "a <token> is dancing"),
        ("It's dancing", "a <token>'s dancing"),
        ("she walks slowly", "a <token> walks slowly"),
        ("dancing wildly", None),
    ],
)
def test_a_pronoun_is_the_captions_subject(prompt, becomes):
    assert refined(prompt, Subject.named("panda")) == becomes


@pytest.mark.parametrize(
    ("caption", "noun"),
    [
        ("there is a panda that is sitting on a rock", "panda"),
        ("a close up of a fox", "fox"),
        ("panda bear", "panda bear"),
        ("a cat and a dog", None),
        ("painting of an old sailor with a pipe", "old sailor"),
    ],
)
def test_the_subject_of_a_caption(caption, noun):
    found = subject_of_caption(caption)
    assert (found and found.noun) == noun


def test_words_that_the_models_of_a_preset_never_saw_are_named():
    known = {
        "words": ["a", "toy", "panda", "is", "dancing", "standing", "still", "front", "view"],
        "subjects": ["panda", "fox"],
        "motions": ["dancing", "standing still"],
    }
    assert unknown_words("toy", known, "a toy panda", "a <token> is dancing") is None
    assert unknown_words("toy", known, "a unicorn is dancing, front view") == (
        "The toy models never saw the word unicorn: they know a panda, fox that is dancing, "
        "standing still."
    )
