// A legend's boxes hide runs in every chart that has a parameter `hidden`; all legends say the same.
document.addEventListener("change", async (event) => {
  if (!event.target.matches?.("input[data-hides]")) return;
  const boxes = [...document.querySelectorAll("input[data-hides]")];
  const same = boxes.filter((box) => box.dataset.hides === event.target.dataset.hides);
  for (const box of same) box.checked = event.target.checked;
  const hidden = boxes.filter((box) => !box.checked).map((box) => box.dataset.hides);
  await tdpo.ready;
  const names = { signals: () => true, data: () => false };
  const views = Object.values(tdpo.views).filter((view) => "hidden" in view.getState(names).signals);
  await Promise.all(views.map((view) => view.signal("hidden", hidden).runAsync()));
});
