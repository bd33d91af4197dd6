package android.graphics;

import java.awt.image.BufferedImage;

/** The part of Android's bitmaps that generated tests call, on a desktop's pictures. */
public final class Bitmap {
    private final BufferedImage image;

    Bitmap(BufferedImage image) { this.image = image; }

    public int getWidth() { return image.getWidth(); }

    public int getHeight() { return image.getHeight(); }

    public void getPixels(int[] pixels, int offset, int stride, int x, int y, int width, int height) {
        image.getRGB(x, y, width, height, pixels, offset, stride);
    }
}
