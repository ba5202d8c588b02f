// Works the viewer as a reader would, and leaves what it saw in document.body.dataset.said
// (tests/report/test_viewer.py).
(async () => {
  const until = async f => {
    for (let i = 0; i < 400 && !f(); i++) await new Promise(r => setTimeout(r, 25));
  };
  await until(() => document.body.dataset.viewer);
  const v = window.spinefitViewer, said = {}, box = document.getElementById('viewer');
  const set = async (name, value) => {
    const e = box.querySelector(`[name=${name}]`);
    e.value = value;
    e.dispatchEvent(new Event(e.type === 'range' ? 'input' : 'change'));
    await v.update();
  };
  // share of the picture that is not white
  const ink = () => {
    const gl = v.canvas.getContext('webgl2'), w = gl.drawingBufferWidth, h = gl.drawingBufferHeight;
    const p = new Uint8Array(4 * w * h);
    gl.readPixels(0, 0, w, h, gl.RGBA, gl.UNSIGNED_BYTE, p);
    let n = 0;
    for (let i = 0; i < p.length; i += 4) if (p[i] + p[i + 1] + p[i + 2] < 740) n++;
    return n / (w * h);
  };
  said.plain = ink();
  said.words = v.say.textContent;
  const bodies = v.scenes.optimised.bodies;
  const triangles = b => b.children[0].geometry.attributes.position.count / 3;
  said.triangles = bodies.map(b => b.children.length ? triangles(b) : 0);
  const place = e => [e.textContent, e.children[1].offsetLeft, e.children[1].offsetTop];
  const marks = () => v.letters.filter(e => !e.hidden).map(place);
  box.querySelector('[data-view=anterior]').click();
  said.anterior = marks();
  box.querySelector('[data-view=cranial]').click();
  said.cranial = marks();
  box.querySelector('[data-view=oblique]').click();
  await set('cut', 'x');
  said.cut_words = v.say.textContent;
  const xyz = bodies[0].children[1].geometry.attributes.position.array;
  let area = 0;
  for (let i = 0; i < xyz.length; i += 9) {
    const a = [xyz[i + 4] - xyz[i + 1], xyz[i + 5] - xyz[i + 2]];
    const b = [xyz[i + 7] - xyz[i + 1], xyz[i + 8] - xyz[i + 2]];
    area += Math.abs(a[0] * b[1] - a[1] * b[0]) / 2;
  }
  said.cut_mm2 = area;
  said.cut = ink();
  await set('cut', 'none');
  await set('beside', 'stock');
  said.beside = v.say.textContent;
  said.two = Object.keys(v.scenes).length;
  await set('beside', '');
  box.querySelector('[value=cranial]').click();
  await v.update();
  said.hidden = bodies[1].visible;
  said.without = v.say.textContent;
  box.querySelector('[value=cranial]').click();
  await v.update();
  await set('explode', '50');
  said.exploded = bodies[1].position.z - bodies[0].position.z;
  await set('explode', '0');
  const before = v.camera.position.toArray();
  v.canvas.focus();
  v.canvas.dispatchEvent(new KeyboardEvent('keydown', {key: 'ArrowLeft', bubbles: true}));
  said.turned = v.camera.position.toArray().some((x, i) => Math.abs(x - before[i]) > 1);
  box.querySelector('[data-view=anterior]').click();
  said.picked = v.pick(v.canvas.clientWidth / 2, v.canvas.clientHeight / 2 + 110);
  said.focus = document.activeElement === v.canvas;
  document.body.dataset.said = JSON.stringify(said);
})();
