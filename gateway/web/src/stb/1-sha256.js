/* HMAC-SHA256 (RFC 2104, FIPS 180-4) in ES5: old WebViews have no SubtleCrypto, and none has it on plain HTTP. */
var BoxCrypto = (function () {
  "use strict";
  var K = [],
    H0 = [];
  (function () {
    var prime,
      n,
      i,
      found = 0;
    function frac(x) {
      return ((x - Math.floor(x)) * 4294967296) | 0;
    }
    for (n = 2; found < 64; n++) {
      prime = true;
      for (i = 2; i * i <= n; i++) {
        if (n % i === 0) {
          prime = false;
          break;
        }
      }
      if (prime) {
        if (found < 8) {
          H0.push(frac(Math.pow(n, 1 / 2)));
        }
        K.push(frac(Math.pow(n, 1 / 3)));
        found++;
      }
    }
  })();
  function rotr(x, n) {
    return (x >>> n) | (x << (32 - n));
  }

  /** Digest of an array of bytes, as an array of 32 bytes. */
  function sha256(bytes) {
    var h = H0.slice(0),
      data = bytes.slice(0),
      bits = bytes.length * 8,
      w = [],
      out = [],
      i,
      j,
      a,
      b,
      c,
      d,
      e,
      f,
      g,
      k,
      t1,
      t2,
      s0,
      s1;
    data.push(128);
    while (data.length % 64 !== 56) {
      data.push(0);
    }
    data.push(0, 0, 0, Math.floor(bits / 4294967296) & 255);
    data.push((bits >>> 24) & 255, (bits >>> 16) & 255, (bits >>> 8) & 255, bits & 255);
    for (i = 0; i < data.length; i += 64) {
      for (j = 0; j < 64; j++) {
        if (j < 16) {
          w[j] =
            (data[i + j * 4] << 24) | (data[i + j * 4 + 1] << 16) | (data[i + j * 4 + 2] << 8) | data[i + j * 4 + 3];
        } else {
          s0 = rotr(w[j - 15], 7) ^ rotr(w[j - 15], 18) ^ (w[j - 15] >>> 3);
          s1 = rotr(w[j - 2], 17) ^ rotr(w[j - 2], 19) ^ (w[j - 2] >>> 10);
          w[j] = (w[j - 16] + s0 + w[j - 7] + s1) | 0;
        }
      }
      a = h[0];
      b = h[1];
      c = h[2];
      d = h[3];
      e = h[4];
      f = h[5];
      g = h[6];
      k = h[7];
      for (j = 0; j < 64; j++) {
        t1 = (k + (rotr(e, 6) ^ rotr(e, 11) ^ rotr(e, 25)) + ((e & f) ^ (~e & g)) + K[j] + w[j]) | 0;
        t2 = ((rotr(a, 2) ^ rotr(a, 13) ^ rotr(a, 22)) + ((a & b) ^ (a & c) ^ (b & c))) | 0;
        k = g;
        g = f;
        f = e;
        e = (d + t1) | 0;
        d = c;
        c = b;
        b = a;
        a = (t1 + t2) | 0;
      }
      h = [
        (h[0] + a) | 0,
        (h[1] + b) | 0,
        (h[2] + c) | 0,
        (h[3] + d) | 0,
        (h[4] + e) | 0,
        (h[5] + f) | 0,
        (h[6] + g) | 0,
        (h[7] + k) | 0
      ];
    }
    for (i = 0; i < 8; i++) {
      out.push((h[i] >>> 24) & 255, (h[i] >>> 16) & 255, (h[i] >>> 8) & 255, h[i] & 255);
    }
    return out;
  }
  function utf8(text) {
    var bin = unescape(encodeURIComponent(text)),
      out = [],
      i;
    for (i = 0; i < bin.length; i++) {
      out.push(bin.charCodeAt(i));
    }
    return out;
  }
  function fromHex(hex) {
    var out = [],
      i;
    for (i = 0; i + 1 < hex.length; i += 2) {
      out.push(parseInt(hex.substr(i, 2), 16));
    }
    return out;
  }
  function toHex(bytes) {
    var out = "",
      i;
    for (i = 0; i < bytes.length; i++) {
      out += (bytes[i] < 16 ? "0" : "") + bytes[i].toString(16);
    }
    return out;
  }
  /** Lower-case hex HMAC-SHA256 of `text` (UTF-8) under the key given in hex. */
  function hmac(keyHex, text) {
    var key = fromHex(keyHex),
      inner = [],
      outer = [],
      i;
    if (key.length > 64) {
      key = sha256(key);
    }
    for (i = 0; i < 64; i++) {
      inner.push((key[i] || 0) ^ 54);
      outer.push((key[i] || 0) ^ 92);
    }
    return toHex(sha256(outer.concat(sha256(inner.concat(utf8(text))))));
  }
  return {
    hmac: hmac,
    sha256hex: function (text) {
      return toHex(sha256(utf8(text)));
    }
  };
})();
if (typeof module !== "undefined" && module.exports) {
  module.exports = BoxCrypto;
}
