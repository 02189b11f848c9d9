// What stands inside a line: a list of nodes (plain objects).
//
//   {type: "text" | "code" | "math", text}     {type: "strong" | "emphasis" | "deleted", children}
//   {type: "link", address, children}          {type: "picture", address, text}     {type: "break"}
//
// One pass, linear in the text. HTML is text. A link has an address only if it leads to a web page
// or a mailbox; any other is left as it was written.

const MAX_OPEN = 30; // marks that wait for their partner; bounds the nesting
const MAX_ADDRESS = 2000;
const KINDS = { "*": ["emphasis", "strong"], _: ["emphasis", "strong"], "~": [null, "deleted"] };
const PUNCTUATION = /[\p{P}\p{S}]/u;
const ESCAPED = /[!-/:-@[-`{-~]/;
const ENTITIES = { amp: "&", lt: "<", gt: ">", quot: '"', apos: "'", nbsp: "\u00a0" };
const PATTERNS = {
  run: /`+/g,
  entity: /&(?:#(\d{1,7})|#[xX]([0-9a-fA-F]{1,6})|(\w{2,5}));/y,
  between: /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/y,
  lineBreak: /<br ?\/?>/iy,
  bare: /https?:\/\/[^\s<>"'`|\\]{1,2000}/y,
};

export function parseInline(text) {
  return new Inline(text).run();
}

// the address, spelled out by the browser's own reading of it, or null
export function safeAddress(written) {
  let address;
  try {
    address = new URL(written.trim());
  } catch {
    return null;
  }
  return ["http:", "https:", "mailto:"].includes(address.protocol) ? address.href : null;
}

class Inline {
  constructor(text) {
    this.text = text;
    this.at = 0;
    this.nodes = [];
    this.marks = []; // {char, length, index of its text node}
    this.brackets = []; // {index of its text node, isPicture, isActive}
    this.waiting = { "*": 0, _: 0, "~": 0 };
    this.runs = null; // backticks: length -> positions, ascending
    this.noEnd = new Set(); // ends of formulas that do not come any more
  }

  run() {
    while (this.at < this.text.length) {
      if (!this.special(this.text[this.at])) this.add(this.text[this.at++]);
    }
    return this.nodes;
  }

  special(char) {
    switch (char) {
      case "\\":
        return this.backslash();
      case "`":
        return this.code();
      case "$":
        return this.formula("$$", "$$");
      case "*":
      case "_":
      case "~":
        return this.mark(char);
      case "!":
        return this.text[this.at + 1] === "[" && this.openBracket(true);
      case "[":
        return this.openBracket(false);
      case "]":
        return this.closeBracket();
      case "<":
        return this.lessThan();
      case "&":
        return this.entity();
      case "h":
        return this.bareAddress();
      case "\n":
        return this.lineBreak(1);
      default:
        return false;
    }
  }

  // joined with the text before it, unless a mark waits there for its partner
  add(text) {
    const last = this.nodes.at(-1);
    if (last?.type === "text" && !last.isMark) last.text += text;
    else this.nodes.push({ type: "text", text });
    return true;
  }

  match(name) {
    const pattern = PATTERNS[name];
    pattern.lastIndex = this.at;
    return pattern.exec(this.text);
  }

  lineBreak(length) {
    const last = this.nodes.at(-1);
    if (last?.type === "text") last.text = last.text.trimEnd();
    this.nodes.push({ type: "break" });
    this.at += length;
    while (this.text[this.at] === " ") this.at += 1;
    return true;
  }

  backslash() {
    const next = this.text[this.at + 1];
    if (next === "\n") return this.lineBreak(2);
    if (next === "(" && this.formula("\\(", "\\)")) return true;
    if (next === "[" && this.formula("\\[", "\\]")) return true;
    if (next === undefined || !ESCAPED.test(next)) return false;
    this.at += 2;
    return this.add(next);
  }

  formula(start, end) {
    if (!this.text.startsWith(start, this.at) || this.noEnd.has(end)) return false;
    const close = this.text.indexOf(end, this.at + start.length);
    if (close < 0) this.noEnd.add(end);
    if (close < 0 || close === this.at + start.length) return false;
    this.nodes.push({ type: "math", text: this.text.slice(this.at + start.length, close).trim() });
    this.at = close + end.length;
    return true;
  }

  code() {
    if (!this.runs) {
      this.runs = new Map();
      for (const run of this.text.matchAll(PATTERNS.run)) {
        if (!this.runs.has(run[0].length)) this.runs.set(run[0].length, []);
        this.runs.get(run[0].length).push(run.index);
      }
      for (const positions of this.runs.values()) positions.reverse();
    }
    let length = 1;
    while (this.text[this.at + length] === "`") length += 1;
    const positions = this.runs.get(length) ?? [];
    while (positions.length && positions.at(-1) <= this.at) positions.pop();
    const start = this.at + length;
    if (!positions.length) {
      this.at = start;
      return this.add("`".repeat(length));
    }
    const close = positions.pop();
    const inside = this.text.slice(start, close).replaceAll("\n", " ");
    const isPadded = /^ .*[^ ].* $/.test(inside);
    this.nodes.push({ type: "code", text: isPadded ? inside.slice(1, -1) : inside });
    this.at = close + length;
    return true;
  }

  // CommonMark's rules for what may open and close, without its rule of three
  mark(char) {
    let length = 1;
    while (this.text[this.at + length] === char) length += 1;
    const before = this.text[this.at - 1] ?? " ";
    const after = this.text[this.at + length] ?? " ";
    this.at += length;
    const isSpace = (c) => /\s/.test(c);
    const opensLeft = !isSpace(after) &&
      (!PUNCTUATION.test(after) || isSpace(before) || PUNCTUATION.test(before));
    const closesRight = !isSpace(before) &&
      (!PUNCTUATION.test(before) || isSpace(after) || PUNCTUATION.test(after));
    const isWord = char === "_";
    const mayClose = closesRight && (!isWord || !opensLeft || PUNCTUATION.test(after));
    const mayOpen = opensLeft && (!isWord || !closesRight || PUNCTUATION.test(before));
    if (char === "~" && length !== 2) return this.add(char.repeat(length));
    const left = mayClose ? this.close(char, length) : length;
    if (left && mayOpen && this.marks.length < MAX_OPEN) this.open(char, left);
    else if (left) this.add(char.repeat(left));
    return true;
  }

  open(char, length) {
    this.marks.push({ char, length, index: this.nodes.length });
    this.waiting[char] += 1;
    this.nodes.push({ type: "text", text: char.repeat(length), isMark: true });
  }

  // wraps what follows the last open mark of this kind; what is left of the closing run
  close(char, length) {
    while (length && this.waiting[char]) {
      while (this.marks.at(-1).char !== char) this.forget();
      const mark = this.marks.at(-1);
      const used = Math.min(2, length, mark.length);
      this.wrap(mark.index, KINDS[char][used - 1]);
      mark.length -= used;
      length -= used;
      this.nodes[mark.index].text = char.repeat(mark.length);
      if (!mark.length) {
        this.forget();
        this.nodes.splice(mark.index, 1);
      }
    }
    return length;
  }

  forget() {
    this.waiting[this.marks.pop().char] -= 1;
  }

  wrap(index, type, more = {}) {
    const children = this.nodes.splice(index + 1);
    this.nodes.push({ type, children, ...more });
    while (this.brackets.length && this.brackets.at(-1).index > index) this.brackets.pop();
  }

  openBracket(isPicture) {
    this.at += isPicture ? 2 : 1;
    this.brackets.push({ index: this.nodes.length, isPicture, isActive: true });
    this.nodes.push({ type: "text", text: isPicture ? "![" : "[", isMark: true });
    return true;
  }

  closeBracket() {
    const bracket = this.brackets.pop();
    if (!bracket) return false;
    const target = bracket.isActive ? this.target() : null;
    if (!target) return false;
    while (this.marks.length && this.marks.at(-1).index > bracket.index) this.forget();
    if (bracket.isPicture) {
      const text = plainText(this.nodes.splice(bracket.index));
      this.nodes.push({ type: "picture", address: target.address, text });
    } else {
      this.wrap(bracket.index, "link", { address: target.address });
      this.nodes.splice(bracket.index, 1);
      for (const outer of this.brackets) outer.isActive &&= outer.isPicture;
    }
    this.at = target.end;
    return true;
  }

  // (address) or (<address> "title") after a closing bracket, with balanced parentheses
  target() {
    if (this.text[this.at + 1] !== "(") return null;
    const limit = Math.min(this.text.length, this.at + MAX_ADDRESS);
    let depth = 1;
    let end = this.at + 2;
    for (; end < limit && depth; end += 1) {
      const char = this.text[end];
      if (char === "\n") return null;
      if (char === "(") depth += 1;
      if (char === ")") depth -= 1;
    }
    if (depth) return null;
    const inside = this.text.slice(this.at + 2, end - 1).trim();
    const written = inside.replace(/ +["'(][^"']*["')]$/, "").replace(/^<(.*)>$/, "$1");
    const address = safeAddress(written);
    return address === null ? null : { address, end };
  }

  lessThan() {
    const found = this.match("between");
    const lineBreak = found ? null : this.match("lineBreak");
    if (lineBreak) return this.lineBreak(lineBreak[0].length);
    return found ? this.link(found[1], found[0].length) : false;
  }

  bareAddress() {
    const isInside = /[\p{L}\p{N}_]/u.test(this.text[this.at - 1] ?? " ");
    const found = isInside ? null : this.match("bare");
    if (!found) return false;
    let written = found[0].replace(/[.,:;!?*_~)\]}]+$/, "");
    if (written.includes("(") && found[0][written.length] === ")") written += ")";
    return this.link(written, written.length);
  }

  link(written, length) {
    const address = safeAddress(written);
    if (address === null) return false;
    const children = [{ type: "text", text: written.replace(/^mailto:/, "") }];
    this.nodes.push({ type: "link", address, children });
    this.at += length;
    return true;
  }

  entity() {
    const found = this.match("entity");
    if (!found) return false;
    const code = found[1] ? parseInt(found[1], 10) : parseInt(found[2] ?? "0", 16);
    const isCode = code > 0 && code <= 0x10ffff && !(code >= 0xd800 && code < 0xe000);
    const text = found[3] ? ENTITIES[found[3]] : isCode && String.fromCodePoint(code);
    if (!text) return false;
    this.at += found[0].length;
    return this.add(text);
  }
}

export function plainText(nodes) {
  const parts = nodes.map((node) => {
    if (node.type === "break") return "\n";
    return node.children ? plainText(node.children) : node.text;
  });
  return parts.join("").replace(/^!\[/, "");
}
