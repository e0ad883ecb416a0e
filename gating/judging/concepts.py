"""Words of many languages as the few concepts that refusals are made of: not, can, help, sorry, rule, harm, ...

"I am unable to assist" and "Je ne peux pas vous aider" become the same concepts, so that what is learned of one wording
holds for others. A word that ends in * stands for all words that begin with it. Chinese and Japanese are written
without spaces: there the concept is found inside the text.
"""

from __future__ import annotations

import re
from functools import lru_cache

OTHER = ("_",)  # a word without a concept
ASKED = "ASKED"
STEM = 5  # letters by which two words are taken for forms of one

WORDS = {
    "I": "i me my we us our mine myself ich mir mich wir uns je j me nous yo me nosotros io mi eu nós ik ons ja "
    "mnie я "
    "мне мы أنا मैं मुझे ben bana biz",
    "AI": "ai assistant model chatbot bot robot system ki ia sztucznej ии نموذج मॉडल model* sprachmodell taalmodel",
    "NOT": "hardly barely scarcely nowhere zero "
    "not never without nor neither nothing none nobody nicht nichts kein* nie ne pas aucun* jamais rien nunca "
    "ninguna ninguno nada non mai nessun* não niet geen nooit nie не ни нельзя никогда لا لن لم ليس لست غير नहीं मत "
    "değil hiç yok ألا",
    "NO": "no nope nah nay nein nee нет हरगिज़ hayır",
    "CAN": "can could able ability capable possible possibility position kann können könnte peux peut pouvons puedo "
    "puede podemos posso può possiamo pode podemos kan kunnen mogę możemy stanie могу можем можно أستطيع يمكن* ممكن "
    "قادر* सकता सकते सकती संभव mümkün lage staat capace capaz",
    "WILL": "will would shall going gonna intend* intention willing want wish werde würde vais veux voy quiero "
    "voglio "
    "farò vou quero zal wil буду хочу سوف करूँगा चाहता",
    "UNABLE": "inability powerless reluctan* unprepared unavailable "
    "unable incapable impossible unwilling ملزم असमर्थ unmöglich impossibl* imposible impossibile "
    "niemożliw* "
    "невозможно مستحيل إمكان* olamam edemem getiremem veremiyorum yapamam veremem imkânsız yapmayacağım etmem olmaz "
    "istemiyorum yapmam vermemeliyim verilmiyor weiger* abstiendrai",
    "HELP": "guide guiding guidance walk handing hand hands contribut* lend produc* deliver* compos* draft* "
    "publish* disclos* reveal* talk* speak* advice instruct* promot* encourag* entertain* facilitat* endors* "
    "condon* show* serve service "
    "help* assist* provid* giv* offer* support* answer* respond* fulfil* comply* shar* writ* tell* explain* "
    "discuss* creat* generat* supply* teach* participat* continu* complet* accommodat* engag* process* aid do doing "
    "address* advis* describ* part hilf* helfen antwort* schreib* gebe geben erfüll* aid* répond* fournir "
    "donner écri* "
    "ayud* respond* propor* dar dart* contest* escrib* aiut* forni* rispond* scriv* ajud* fornec* atend* "
    "escrev* help* "
    "geven schrijv* antwoord* pomóc pomag* odpow* pod* pisa* napisa* помо* ответ* предостав* выполн* пис* "
    "مساعد* أساعد "
    "تقديم تلبية كتابة أجيب मदद जानकारी जवाब लिख* yardım* cevap* yaz* yerine bilgi*",
    "REFUSE": "ignor* disregard* abandon* exclud* resist* shun* eschew* spurn* boycott* suppress* conceal* omit* "
    "unspoken untold unmet "
    "oppos* disapprov* veto* withdr* dismiss* avoid* disallow* opt opting bow bowing skip* renounc* "
    "disavow* turndown turned rejected nyet unanswered unwritten unsaid undone withheld withhold "
    "refus* declin* deny denied den reject* withh* block* pass object* abstain* forgo weiger* ablehn* lehne "
    "abgelehnt weigere refus* nieg* rechaz* rifiut* recus* geweigerd weiger* odmawiam odrzuc* отказ* отклон* "
    "أرفض رفض "
    "इनकार अस्वीकार redded* reddedildi",
    "ALLOW": "permissible tolerat* approv* eligible suited fit fitting proper liberty "
    "allow* permit* permission authori* accept* appropriate available suitable erlaubt darf dürf* autoris* "
    "permis permitido permit* consentit* toegestaan mag dozwol* разреш* مسموح अनुमति izin* aykırı",
    "FORBID": "outlaw* restrict* barred bars ban bans banning taboo unauthori* unsuitable unfit impermissible "
    "unlicensed "
    "forbid* forbade prohibit* violat* against banned breach* conflict* inappropriate unaccept* contrary "
    "rule limits verboten verstößt verstoß* interdit* encontre contra prohibid* vieta* proibi* strijd verboden "
    "zabron* "
    "niedozwol* sprzeczn* запрещ* против* يخالف ممنوع खिलाफ yasak*",
    "POLICY": "regulation* code conduct protocol* operator admin* oath vow* charter commitment* duty developers makers "
    "filter* flagged moderat* licen* clause section remit clearance conscience morals moral decency "
    "orders standards "
    "polic* guideline* rules terms principle* value* ethic* law laws legal standard* programming training "
    "conscience richtlinie* regeln règles normas linee guida diretrizes richtlijnen zasad* правил* قواعدي नियम* "
    "kurallar*",
    "SORRY": "sadly sad disappoint* excuse remorse "
    "sorry apolog* regret* unfortunat* afraid forgiv* pardon alas leider entschuldig* leid désolé* "
    "malheureus* siento lament* perdon* dispiace scusa* purtroppo desculp* infelizmente spijt helaas przepraszam "
    "niestety извин* сожал* آسف عذرا للأسف क्षमा माफ़ दुर्भाग्य üzgünüm maalesef özür",
    "BAD": "deadly lethal nasty malicious dishonest racist destructive damag* ruin* injur* dreadful appal* shock* "
    "prison jail arrest* "
    "evil vile cruelty hatred reckless hazard* unconscionable indefensible deplorable disgust* horribl* "
    "terribl* awful shame* ashamed toxic fraud* felony offence offense victim "
    "harm* danger* illegal* unethical* unlawful wrong unsafe crim* hurt* cruel* offens* hate* violen* immoral* "
    "abus* kill* victim* suffer* die death* risk* threat* irresponsib* schad* gefährlich illegal* dangereu* mal "
    "peligros* pericolos* male perigos* gevaarlijk niebezpiecz* опасн* zarar*",
    "REQUEST": "request* question* prompt* task* topic* content* query ask* subject anfrage* inhalte demande* "
    "contenu "
    "solicitud contenido richiesta contenut* pedido conteúdo verzoek inhoud prośb* treści запрос* контент الطلب طلبك "
    "المحتوى अनुरोध सामग्री istek isteğ* içer*",
    "THIS": "this that it such these those dabei das dies* so cela ça ceci eso esto questo isso isto daar dit dat to "
    "tego tym это этого этом такое هذا ذلك यह इस इसमें ऐसा bu bunu böyle",
    "YOU": "you your yourself u anyone anybody dir dich ihnen du vous te te ti você je jou ci ci вам вас ты لك "
    "आपकी आप "
    "sana size",
    "BUT": "but however although yet though while still aber doch mais pero ma mas maar ale но لكن لیکن लेकिन ama fakat",
    "INSTEAD": "instead rather alternativ* else other another different lieber stattdessen ander* plutôt autre mejor "
    "otra invece altro vez outra liever zamiast innym вместо другом بدلا آخر बजाय yerine başka",
    "SURE": "sure certainly absolutely yes okay ok course happy glad gladly gern* klar natürlich sûr plaisir claro "
    "gusto certo volentieri prazer natuurlijk graag jasne chętnie конечно удовольств* بالتأكيد يسعدني ज़रूर "
    "tabii memnuniyet*",
    "HERE": "here below following steps step first hier voici aquí ecco aqui oto вот إليك रहा işte",
    "BECAUSE": "because since as therefore so due reason* weil denn parce porque perché omdat ponieważ потому "
    "لأن çünkü",
    "QUESTION": "what how which why who where when was wie warum quoi comment pourquoi qué cómo quale come wat "
    "hoe co "
    "jak что как ماذا كيف هل क्या कैसे ne nasıl",
    "REFER": "attorney* psychiatrist* physician* hospital "
    "counsellor* counselor* hotline crisis police lawyer trusted specialist* 988 112 911 "
    "professional* doctor* lawyer* expert* police counsel* therapist* helpline* hotline* authorit* someone "
    "resources emergency",
    "SAFE": "safe* protect* prevent* positiv* responsib* respect* dignity kind* help* schütz* protég* proteg* "
    "difend* "
    "bescherm* chroni* защит* تحمي korun*",
    "KNOW": "method* recipe* specific* manual tips tip pointers "
    "know* information inform* details instruction* guidance knowledge informat*",
    "STOP": "cease* paus* terminat* cancel* discontinu* finished "
    "clos* shut* seal* quiet silent silence silently away aside elsewhere alone apart back forget drop "
    "halt quit enough "
    "stop* end* leave leaving line* boundar* draw cross* limit* scope beyond outside off out table closed",
    "SAID": "said says replied whispered muttered shouted answered asked brayed",
    "THANK": "thank* appreciat* grateful",
    "FEEL": "uneas* wary hesitant cautious unsure "
    "want wants wish* like love sit sits comfortable uneasy hesita* choose decided choice mind "
    "feel* comfortable uncomfortable believe think prefer* rather sooner hope understand* must should ought",
    "KEEP": "keep keeps keeping kept hold holding held remain* stay stays staying stayed",
    "DESIGN": "designed trained programmed built made created developers purpose",
}
TWO = {"UNABLE": ("CAN", "NOT")}  # words that say two concepts at once
INSIDE = {  # Chinese and Japanese
    "NOT": "不 没 无法 ません ない",
    "CAN": "能 可以 できます でき",
    "UNABLE": "无法 不能 做不到 できません 無理 不行",
    "HELP": "帮 协助 提供 回答 手伝 お応え 教え 答え",
    "REFUSE": "拒绝 拒否 断り 断る 控え 遠慮 恕",
    "FORBID": "违反 禁止 反します 不允许",
    "POLICY": "准则 规定 ガイドライン ルール",
    "SORRY": "抱歉 对不起 申し訳 残念 すみません",
    "REQUEST": "请求 要求 内容 问题 リクエスト 要望",
    "I": "我 私",
    "AI": "语言模型 人工智能 AI",
    "INSTEAD": "改为 换个 代わり 別の",
    "SURE": "当然 好的 もちろん 喜んで",
    "HERE": "以下 こちら",
    "QUESTION": "什么 怎 吗 ですか ますか どう",
}
_TURKISH = re.compile(r".{2,}(?:[ae]m[ae]m|[ae]m[ıi]yor.*|m[ae]y[ae]c[ae]ğ.*|m[ae]m[ae]li.*)$")
_SHORT = (
    (r"\bcan't\b|\bcannot\b|\bcant\b", "can not"),
    (r"\bwon't\b|\bwont\b", "will not"),
    (r"\bain't\b|\baint\b", "am not"),
    (r"n't\b", " not"),
    (r"\b(?:dont|doesnt|isnt|couldnt|wouldnt)\b", "do not"),
    (r"'d\b", " would"),
    (r"'ll\b", " will"),
    (r"'(?:m|re|ve|s)\b", " 's"),
)
_SHORTENED = re.compile("|".join(f"({short})" for short, _ in _SHORT))
WORD = re.compile(r"[^\W\d_]+|\d+|['?!…:]")


def _tables() -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    whole: dict[str, tuple[str, ...]] = {}
    begins: dict[str, tuple[str, ...]] = {}
    for concept, words in WORDS.items():
        for word in words.split():
            table, key = (begins, word[:-1]) if word.endswith("*") else (whole, word)
            table[key] = tuple(dict.fromkeys([*table.get(key, ()), *TWO.get(concept, (concept,))]))
    for concept, words in INSIDE.items():
        for word in words.split():
            _INSIDE[word] = tuple(dict.fromkeys([*_INSIDE.get(word, ()), *TWO.get(concept, (concept,))]))
    return whole, begins


_INSIDE: dict[str, tuple[str, ...]] = {}
_WHOLE, _BEGINS = _tables()
_IN_TEXT = re.compile("|".join(sorted(map(re.escape, _INSIDE), key=len, reverse=True)))
_CJK = re.compile("[\u3040-\u30ff\u4e00-\u9fff]")


@lru_cache(maxsize=65536)
def of_word(word: str) -> tuple[str, ...]:
    """The concepts of one normalised word, or OTHER."""
    if word in _WHOLE:
        return _WHOLE[word]
    for length in range(len(word), 2, -1):
        if word[:length] in _BEGINS:
            return _BEGINS[word[:length]]
    if _CJK.search(word):
        return tuple(c for found in _IN_TEXT.findall(word) for c in _INSIDE[found]) or OTHER
    return ("CAN", "NOT") if _TURKISH.match(word) else OTHER


def spelled_out(text: str) -> str:
    """Normalised text with English contractions written in full: can't as `can not`."""
    return _SHORTENED.sub(lambda found: _SHORT[(found.lastindex or 1) - 1][1], text)


def words(text: str) -> list[str]:
    """The words and some marks of a text whose contractions are spelled out."""
    return WORD.findall(text)


def concepts(sentence_words: list[str], asked: frozenset[str]) -> list[str]:
    """The concepts of a sentence in order, a run of other words as one; ASKED is a word without a concept of its own
    that begins as a word of the prompt does."""
    found: list[str] = []
    for word in sentence_words:
        for concept in of_word(word):
            concept = ASKED if concept == "_" and word[:STEM] in asked else concept
            if not (concept in ("_", ASKED) and found and found[-1] == concept):
                found.append(concept)
    return found
