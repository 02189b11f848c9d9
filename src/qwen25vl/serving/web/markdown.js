// Markdown as models write it: the text becomes a list of blocks (plain objects).
//
//   {type: "paragraph" | "heading" (level), text}     {type: "code", language, text}
//   {type: "list", ordered, start, items: [{checked, blocks}]}     {type: "quote", blocks}
//   {type: "table", alignments, header: [text], rows: [[text]]}    {type: "rule"}
//
// Each line is looked at once on each level of nesting, so the time is linear in the text. Whether
// a block goes on is decided by the lines so far: what streams in later never changes a block that
// another one follows, as long as whole lines are given.

const MAX_DEPTH = 12;
const FENCE = /^( *)(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?: +(.*))?$/;
const RULE = /^ {0,3}([-*_])(?: *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:( +)(.*))?$/;
const TASK = /^\[([ xX])\] +/;
const DELIMITER = /^ *:?-+:? *$/;

const isBlank = (line) => line.trim() === "";
const indentOf = (line) => line.length - line.trimStart().length;

// [{block, start}]: start is the number of the block's first line
export function parseBlocks(lines, depth = 0) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    if (isBlank(lines[at])) at += 1;
    else {
      const [block, next] = readBlock(lines, at, depth);
      found.push({ block, start: at });
      at = next;
    }
  }
  return found;
}

export function parse(text) {
  return parseBlocks(linesOf(text)).map((one) => one.block);
}

export function linesOf(text) {
  return text.replaceAll("\t", "    ").split(/\r\n|\n|\r/);
}

function readBlock(lines, at, depth) {
  const line = lines[at];
  if (depth < MAX_DEPTH) {
    const fence = FENCE.exec(line);
    if (fence) return readCode(lines, at, fence);
    const heading = HEADING.exec(line);
    if (heading) {
      const text = (heading[2] ?? "").replace(/(?:^| )#+ *$/, "").trim();
      return [{ type: "heading", level: heading[1].length, text }, at + 1];
    }
    if (RULE.test(line)) return [{ type: "rule" }, at + 1];
    if (QUOTE.test(line)) return readQuote(lines, at, depth);
    if (ITEM.test(line)) return readList(lines, at, depth);
    if (startsTable(lines, at)) return readTable(lines, at);
  }
  return readParagraph(lines, at, depth);
}

function readCode(lines, at, [, indent, fence, info]) {
  const inside = [];
  for (at += 1; at < lines.length; at += 1) {
    const line = lines[at];
    const trimmed = line.trim();
    const isClosed = trimmed.length >= fence.length && trimmed === fence[0].repeat(trimmed.length);
    if (isClosed) {
      at += 1;
      break;
    }
    inside.push(line.slice(Math.min(indent.length, indentOf(line))));
  }
  const language = info.trim().split(" ")[0];
  return [{ type: "code", language, text: inside.join("\n") }, at];
}

function readQuote(lines, at, depth) {
  const inside = [];
  for (; at < lines.length; at += 1) {
    const quoted = QUOTE.exec(lines[at]);
    if (!quoted) break;
    inside.push(quoted[1]);
  }
  return [{ type: "quote", blocks: blocksOf(inside, depth) }, at];
}

const blocksOf = (lines, depth) => parseBlocks(lines, depth + 1).map((one) => one.block);

// Models indent what belongs to an item by two, three or four spaces; whatever is indented further
// than the item's mark belongs to it.
function readList(lines, at, depth) {
  const [, , mark] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(mark);
  const list = { type: "list", ordered, start: ordered ? parseInt(mark, 10) : 1, items: [] };
  while (at < lines.length) {
    const item = ITEM.exec(lines[at]);
    if (!item || /\d/.test(item[2]) !== ordered || RULE.test(lines[at])) break;
    const next = endOfItem(lines, at + 1, item[1].length);
    list.items.push(readItem(item, lines.slice(at + 1, next), depth));
    at = next;
    while (at < lines.length && isBlank(lines[at])) at += 1;
  }
  return [list, at];
}

function endOfItem(lines, at, indent) {
  let last = at;
  for (; at < lines.length; at += 1) {
    const line = lines[at];
    const isInside = indentOf(line) > indent;
    const continues = at === last && !startsBlock(lines, at) && !ITEM.test(line);
    if (!isBlank(line)) {
      if (!isInside && !continues) break;
      last = at + 1;
    }
  }
  return last;
}

function readItem([, indent, mark, space, text], lines, depth) {
  const width = indent.length + mark.length + (space ? Math.min(space.length, 4) : 1);
  const task = TASK.exec(text ?? "");
  const first = task ? text.slice(task[0].length) : (text ?? "");
  const inside = lines.map((line) => line.slice(Math.min(width, indentOf(line))));
  const blocks = blocksOf([first, ...inside], depth);
  return { checked: task ? task[1] !== " " : null, blocks };
}

// the cells of a row; a bar after a backslash belongs to its cell
function cellsOf(line) {
  const trimmed = line.trim().replace(/^\|/, "");
  const cells = [""];
  for (let i = 0; i < trimmed.length; i += 1) {
    if (trimmed[i] === "\\" && trimmed[i + 1] === "|") {
      cells[cells.length - 1] += "|";
      i += 1;
    } else if (trimmed[i] === "|") cells.push("");
    else cells[cells.length - 1] += trimmed[i];
  }
  if (cells.length > 1 && cells.at(-1).trim() === "") cells.pop();
  return cells.map((cell) => cell.trim());
}

function startsTable(lines, at) {
  if (at + 1 >= lines.length || !lines[at].includes("|") || !lines[at + 1].includes("-")) {
    return false;
  }
  const delimiters = cellsOf(lines[at + 1]);
  const fits = delimiters.every((cell) => DELIMITER.test(cell));
  return fits && delimiters.length === cellsOf(lines[at]).length;
}

function readTable(lines, at) {
  const header = cellsOf(lines[at]);
  const alignments = cellsOf(lines[at + 1]).map((cell) => {
    if (!cell.endsWith(":")) return "start";
    return cell.startsWith(":") ? "center" : "end";
  });
  const rows = [];
  for (at += 2; at < lines.length && !isBlank(lines[at]) && !startsBlock(lines, at); at += 1) {
    const cells = cellsOf(lines[at]).slice(0, header.length);
    rows.push([...cells, ...Array(header.length - cells.length).fill("")]);
  }
  return [{ type: "table", alignments, header, rows }, at];
}

// whether a line ends the paragraph before it; only a list that starts with 1 does, as a sentence
// may well go on with "1984. "
function startsBlock(lines, at) {
  const line = lines[at];
  const item = ITEM.exec(line);
  const startsList = item && item[3] && (!/\d/.test(item[2]) || parseInt(item[2], 10) === 1);
  return [FENCE, HEADING, RULE, QUOTE].some((kind) => kind.test(line)) || Boolean(startsList);
}

function readParagraph(lines, at, depth) {
  const inside = [lines[at].trimStart()];
  for (at += 1; at < lines.length && !isBlank(lines[at]); at += 1) {
    if (depth < MAX_DEPTH && (startsBlock(lines, at) || startsTable(lines, at))) break;
    inside.push(lines[at].trimStart());
  }
  return [{ type: "paragraph", text: inside.join("\n").trimEnd() }, at];
}
