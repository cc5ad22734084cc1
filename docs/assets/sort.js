// Tables in <div class="sortable">: a click on a head sorts the rows by it, another click the other way round.
// Cells count as the number that they begin with, or else as text; those without a value come last.
document.querySelectorAll(".sortable table").forEach((table) => {
  const body = table.tBodies[0];
  const value = (row, column) => row.cells[column].textContent.trim().replace("−", "-").replace(/(\d),(?=\d)/g, "$1");
  const compare = (a, b) => {
    const [x, y] = [parseFloat(a), parseFloat(b)];
    return isNaN(x) || isNaN(y) ? a.localeCompare(b) : x - y;
  };
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const falling = head.getAttribute("aria-sort") === "ascending";
      [...table.tHead.rows[0].cells].forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falling ? "descending" : "ascending");
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [value(a, column), value(b, column)];
        const missing = (x === "–") - (y === "–");
        return missing || (falling ? -1 : 1) * compare(x, y);
      });
      body.append(...rows);
    });
  });
});
